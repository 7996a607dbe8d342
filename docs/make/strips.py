"""Rows of frames as SVG: words above a row, words under a frame, and curves under the rows."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from textwrap import wrap
from typing import Any

import numpy as np
from PIL import Image

from drawing import BLUE, INK, MARGIN, SOFT, WIDTH, Drawing

GAP = 6


@dataclass
class Row:
    """Frames (T, H, W, 3) uint8, a line above them, and words or an arrow under each."""

    about: str
    frames: Any
    under: Sequence[str] = ()
    arrows: Sequence[tuple[float, float] | None] = ()
    """Of what happened between this frame and the next, from -1 to 1; a dot for (0, 0)."""


@dataclass
class Strip:
    """Rows of as many frames each."""

    title: str
    rows: list[Row]
    heads: Sequence[str] = ()
    """Above the columns."""
    notes: list[str] = field(default_factory=list)
    quality: int = 82

    def draw(self, name: str) -> None:
        columns = max(len(row.frames) for row in self.rows)
        side = (WIDTH - 2 * MARGIN - GAP * (columns - 1)) / columns
        notes = wrap(" ".join(self.notes), 58)
        heights = [self._height(row, side) for row in self.rows]
        head = 20 if self.heads else 4
        d = Drawing(int(head + sum(heights) + 17 * len(notes) + 6), self.title)
        lefts = [MARGIN + at * (side + GAP) for at in range(columns)]
        for left, words in zip(lefts, self.heads, strict=False):
            d.words(left + side / 2, 15, words, INK, 12, 'text-anchor="middle"')
        y: float = head
        for row, height in zip(self.rows, heights, strict=True):
            self._row(d, row, lefts, y, side)
            y += height
        for number, note in enumerate(notes):
            d.words(MARGIN, y + 13 + 17 * number, note, SOFT, 12)
        d.save(name)

    def _height(self, row: Row, side: float) -> float:
        ratio = row.frames[0].shape[0] / row.frames[0].shape[1]
        return 18 + side * ratio + (16 if row.under else 0) + (side * 0.5 if row.arrows else 0) + 4

    def _row(self, d: Drawing, row: Row, lefts: list[float], y: float, side: float) -> None:
        d.words(MARGIN, y + 13, row.about, INK, 12, 'font-weight="600"')
        top = y + 18
        high = side * row.frames[0].shape[0] / row.frames[0].shape[1]
        for left, frame in zip(lefts, row.frames, strict=False):
            d.image(left, top, side, high, webp(frame, self.quality), "webp")
        at = top + high
        if row.arrows:
            for left, arrow in zip(lefts, row.arrows, strict=False):
                if arrow is not None:
                    _arrow(d, left + side / 2, at + side * 0.25, side * 0.2, arrow)
            at += side * 0.5
        for left, words in zip(lefts, row.under, strict=False):
            d.words(left + side / 2, at + 12, words, BLUE, 11, 'text-anchor="middle"')


def _arrow(d: Drawing, x: float, y: float, size: float, arrow: tuple[float, float]) -> None:
    across, down = size * arrow[0], size * arrow[1]
    if abs(across) + abs(down) < 1:
        d.dot(x, y, INK, 2.5)
    else:
        d.arrow((x - across, y - down), (x + across, y + down))


def webp(frame: np.ndarray, quality: int) -> str:
    """(H, W, 3) uint8 -> base64."""
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(frame)).save(out, "webp", quality=quality, method=6)
    return base64.b64encode(out.getvalue()).decode()


def enlarged(frame: np.ndarray, times: int = 2) -> np.ndarray:
    """(H, W, 3) -> (H times, W times, 3), each pixel a square."""
    return frame.repeat(times, 0).repeat(times, 1)


def rows_last(frames: Any) -> np.ndarray:
    """(T, 3, H, W) tensor -> (T, H, W, 3) array."""
    return frames.permute(0, 2, 3, 1).cpu().numpy()
