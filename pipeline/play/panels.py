"""Compose images side by side under captions, with lines of text below.

Nothing here needs a display.  Images are (H, W, 3) uint8, RGB.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

CAPTION_HEIGHT = 22  # pixels above a panel
GAP = 4  # pixels between two panels
LINE_HEIGHT = 20  # pixels of a line of text
MIN_WIDTH = 400  # pixels of an image with lines of text, so that they fit under a small world
TEXT_COLOR, DIM_COLOR, BACKGROUND = (235, 235, 235), (160, 160, 160), (24, 24, 28)
RING_COLOR = (220, 40, 40)


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
        interpolation = cv2.INTER_NEAREST if size >= height else cv2.INTER_AREA
        scaled = cv2.resize(panel.image, (columns, size), interpolation=interpolation)
        if pointer is not None and panel.live:
            center = round(pointer[0] * columns), round(pointer[1] * size)
            cv2.circle(
                scaled, center, max(3, size // 64), RING_COLOR, max(1, size // 256), cv2.LINE_AA
            )
        strip = np.full((CAPTION_HEIGHT, columns, 3), BACKGROUND, np.uint8)
        _put_text(strip, panel.caption, 15, TEXT_COLOR)
        strips += [
            np.concatenate([strip, scaled]),
            np.full((CAPTION_HEIGHT + size, GAP, 3), BACKGROUND, np.uint8),
        ]
    return np.concatenate(strips[:-1], axis=1)


def add_text(image: np.ndarray, lines: Sequence[str]) -> np.ndarray:
    """Add lines of text below an image; long ones are wrapped at double spaces."""
    width = max(image.shape[1], MIN_WIDTH)
    canvas = np.full((image.shape[0], width, 3), BACKGROUND, np.uint8)
    canvas[:, : image.shape[1]] = image
    wrapped = [part for line in lines for part in _wrap(line, width - 12)]
    strip = np.full((LINE_HEIGHT * len(wrapped) + 4, width, 3), BACKGROUND, np.uint8)
    for index, line in enumerate(wrapped):
        _put_text(strip, line, 15 + LINE_HEIGHT * index, TEXT_COLOR if index == 0 else DIM_COLOR)
    return np.concatenate([canvas, strip])


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
    return cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.42, 1)[0][0]


def _wrap(text: str, width: int) -> list[str]:
    lines: list[str] = []
    for part in text.split("  "):
        if lines and text_width(f"{lines[-1]}  {part}") <= width:
            lines[-1] += f"  {part}"
        else:
            lines.append(part)
    return lines


def _put_text(strip: np.ndarray, text: str, baseline: int, color: tuple[int, int, int]) -> None:
    origin, font = (6, baseline), cv2.FONT_HERSHEY_SIMPLEX
    cv2.putText(strip, text, origin, font, 0.42, color, 1, cv2.LINE_AA)
