"""Put pictures side by side under captions, with a line of text beneath.

Nothing here needs a display.  Pictures are (H, W, 3) uint8, RGB.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

CAPTION = 22  # pixels above a panel
GAP = 4  # pixels between two panels
LINE = 20  # pixels of a line of text
LEAST_WIDTH = 400  # pixels of a picture with lines beneath: a small world needs words, too
INK, DIM, PAPER = (235, 235, 235), (160, 160, 160), (24, 24, 28)
RING = (220, 40, 40)


@dataclass
class Panel:
    caption: str
    picture: np.ndarray  # (H, W, 3) uint8
    live: bool = True  # the pointer is at work in it


def compose(
    panels: Sequence[Panel], size: int, pointer: tuple[float, float] | None = None
) -> np.ndarray:
    """Draw panels `size` pixels high side by side, a ring at the pointer in those that are live."""
    drawn = []
    for panel in panels:
        height, width = panel.picture.shape[:2]
        columns = round(width * size / height)
        how = cv2.INTER_NEAREST if size >= height else cv2.INTER_AREA
        big = cv2.resize(panel.picture, (columns, size), interpolation=how)
        if pointer is not None and panel.live:
            place = round(pointer[0] * columns), round(pointer[1] * size)
            cv2.circle(big, place, max(3, size // 64), RING, max(1, size // 256), cv2.LINE_AA)
        strip = np.full((CAPTION, columns, 3), PAPER, np.uint8)
        _write(strip, panel.caption, 15, INK)
        drawn += [np.concatenate([strip, big]), np.full((CAPTION + size, GAP, 3), PAPER, np.uint8)]
    return np.concatenate(drawn[:-1], axis=1)


def with_lines(picture: np.ndarray, lines: Sequence[str]) -> np.ndarray:
    """Put lines of text beneath a picture, broken at double spaces where they are too long."""
    width = max(picture.shape[1], LEAST_WIDTH)
    wide = np.full((picture.shape[0], width, 3), PAPER, np.uint8)
    wide[:, : picture.shape[1]] = picture
    broken = [part for line in lines for part in _break(line, width - 12)]
    strip = np.full((LINE * len(broken) + 4, width, 3), PAPER, np.uint8)
    for number, line in enumerate(broken):
        _write(strip, line, 15 + LINE * number, INK if number == 0 else DIM)
    return np.concatenate([wide, strip])


def share_at(
    x: int, y: int, size: int, panels: int = 1, aspect: float = 1.0
) -> tuple[float, float]:
    """Turn a pixel of a composed picture into shares of the panel that it lies in."""
    width = round(size * aspect)
    x = min(max(x, 0), panels * (width + GAP) - GAP - 1)  # text may reach further
    inside = min(x % (width + GAP), width - 1)
    return (inside + 0.5) / width, min(max((y - CAPTION + 0.5) / size, 0.0), 1.0)


def text_width(text: str) -> int:
    return cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.42, 1)[0][0]


def _break(text: str, width: int) -> list[str]:
    lines: list[str] = []
    for part in text.split("  "):
        if lines and text_width(f"{lines[-1]}  {part}") <= width:
            lines[-1] += f"  {part}"
        else:
            lines.append(part)
    return lines


def _write(strip: np.ndarray, text: str, baseline: int, colour: tuple[int, int, int]) -> None:
    place, font = (6, baseline), cv2.FONT_HERSHEY_SIMPLEX
    cv2.putText(strip, text, place, font, 0.42, colour, 1, cv2.LINE_AA)
