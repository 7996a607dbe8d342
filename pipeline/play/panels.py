"""Compose images side by side under captions, with lines of text below.

Nothing here needs a display, or OpenCV.  Images are (H, W, 3) uint8, RGB.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

CAPTION_HEIGHT = 22  # pixels above a panel
GAP = 4  # pixels between two panels
LINE_HEIGHT = 20  # pixels of a line of text
MIN_WIDTH = 400  # pixels of an image with lines of text, so that they fit under a small world
TEXT_COLOR, DIM_COLOR, BACKGROUND = (235, 235, 235), (160, 160, 160), (24, 24, 28)
RING_COLOR = (220, 40, 40)
FONT_SIZE = 12.5  # pixels
SUPERSAMPLING = 4  # of the ring, for smooth edges


@dataclass
class Panel:
    caption: str
    image: np.ndarray  # (H, W, 3) uint8
    live: bool = True  # shows the pointer


def compose_panels(
    panels: Sequence[Panel], size: int, pointer: tuple[float, float] | None = None
) -> np.ndarray:
    """Draw panels `size` pixels high side by side, with a ring at the pointer in live ones.

    pointer: x and y as fractions of width and height.
    """
    strips = []
    for panel in panels:
        height, width = panel.image.shape[:2]
        columns = round(width * size / height)
        resample = Image.Resampling.NEAREST if size >= height else Image.Resampling.BOX
        scaled = np.array(Image.fromarray(panel.image).resize((columns, size), resample))
        if pointer is not None and panel.live:
            center = round(pointer[0] * columns), round(pointer[1] * size)
            _draw_ring(scaled, center, max(3, size // 64), max(1, size // 256))
        caption = _text_strip(panel.caption, CAPTION_HEIGHT, columns, TEXT_COLOR)
        strips += [
            np.concatenate([caption, scaled]),
            np.full((CAPTION_HEIGHT + size, GAP, 3), BACKGROUND, np.uint8),
        ]
    return np.concatenate(strips[:-1], axis=1)


def blend(image: np.ndarray, over: np.ndarray, opacity: float) -> np.ndarray:
    """Draw an image of the same size faintly over another; opacity from 0 to 1."""
    return np.rint(image + opacity * (over - image.astype(np.float32))).astype(np.uint8)


def add_text(image: np.ndarray, lines: Sequence[str]) -> np.ndarray:
    """Add lines of text below an image; long ones are wrapped at double spaces, or else at any."""
    width = max(image.shape[1], MIN_WIDTH)
    canvas = np.full((image.shape[0], width, 3), BACKGROUND, np.uint8)
    canvas[:, : image.shape[1]] = image
    wrapped = [part for line in lines for part in _wrap(line, width - 12)]
    colors = [TEXT_COLOR, *[DIM_COLOR] * (len(wrapped) - 1)]
    strips = [
        _text_strip(line, LINE_HEIGHT, width, color)
        for line, color in zip(wrapped, colors, strict=True)
    ]
    margin = np.full((4, width, 3), BACKGROUND, np.uint8)
    return np.concatenate([canvas, *strips, margin])


def panel_position(
    x: int, y: int, size: int, panels: int = 1, aspect: float = 1.0
) -> tuple[float, float]:
    """Convert a pixel of a composed image to fractions of the panel that it lies in.

    aspect: width of a panel over its height.
    """
    width = round(size * aspect)
    x = min(max(x, 0), panels * (width + GAP) - GAP - 1)  # the text may be wider
    inside = min(x % (width + GAP), width - 1)
    return (inside + 0.5) / width, min(max((y - CAPTION_HEIGHT + 0.5) / size, 0.0), 1.0)


def text_width(text: str) -> int:
    return math.ceil(font().getlength(text))


@lru_cache(maxsize=64)
def _wrap(text: str, width: int) -> list[str]:
    lines: list[str] = []
    for part in text.split("  "):
        pieces, gap = ([part], "  ") if text_width(part) <= width else (part.split(" "), " ")
        for index, piece in enumerate(pieces):
            space = gap if index else "  "
            if lines and text_width(f"{lines[-1]}{space}{piece}") <= width:
                lines[-1] += f"{space}{piece}"
            else:
                lines.append(piece)
    return lines


@lru_cache(maxsize=64)  # most texts stay as they are from frame to frame
def _text_strip(text: str, height: int, width: int, color: tuple[int, int, int]) -> np.ndarray:
    image = Image.new("RGB", (width, height), BACKGROUND)
    ImageDraw.Draw(image).text((6, 15), text, fill=color, font=font(), anchor="ls")
    return np.asarray(image)


def _draw_ring(image: np.ndarray, center: tuple[int, int], radius: int, width: int) -> None:
    """Blend a ring into (H, W, 3), in place; what lies beyond the edge is cut off."""
    reach = radius + width + 1
    opacity = _ring(reach, radius, width)
    x, y = center
    top, left = max(0, y - reach), max(0, x - reach)
    target = image[top : max(0, y + reach + 1), left : max(0, x + reach + 1)]
    first_row, first_column = top - (y - reach), left - (x - reach)
    share = opacity[
        first_row : first_row + target.shape[0], first_column : first_column + target.shape[1], None
    ]
    target[:] = np.rint(target + share * (np.array(RING_COLOR) - target))


@cache
def _ring(reach: int, radius: int, width: int) -> np.ndarray:
    """(S, S) opacity of a ring, 0 to 1; S = 2 * reach + 1, and its center is the middle pixel."""
    offsets = (np.arange((2 * reach + 1) * SUPERSAMPLING) + 0.5) / SUPERSAMPLING - reach - 0.5
    distance = np.hypot(offsets, offsets[:, None])
    inside = np.abs(distance - radius) <= width / 2
    side = 2 * reach + 1
    return inside.reshape(side, SUPERSAMPLING, side, SUPERSAMPLING).mean((1, 3))


@cache
def font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(FONT_SIZE)
