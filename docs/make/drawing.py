"""A card to draw on, as SVG: boxes, arrows and words that are read on a phone, too.

A card is white, so that it is read on a dark page.  It is 400 units wide, and no text is below 11:
on a phone of 360 pixels, where a page has 328 for a picture, that is 9 pixels.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from textwrap import wrap

ROOT = Path(__file__).resolve().parents[2]
IMAGES = ROOT / "docs/images"
INK, SOFT, BLUE, ORANGE, GREEN = "#222", "#5a5f67", "#1b6ca8", "#b33c0a", "#2e7d32"
WIDTH, SMALL, MARGIN = 400, 11, 16
SHOWN = 1.3  # times its units wide on a large screen


def commit() -> str:
    """The commit that the picture is made at."""
    words = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(
        words, cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.strip()


class Drawing:
    """Boxes, arrows and words on a white card, with the commit at its foot."""

    def __init__(self, height: int, title: str) -> None:
        self.height = height + 18
        self.title = title
        self.parts: list[str] = []

    def box(
        self, x: float, y: float, w: float, h: float, words: str, color: str = INK, size: int = 13
    ) -> None:
        """A box with lines of words in it, the first one bold."""
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="5" fill="{color}" '
            f'fill-opacity="0.09" stroke="{color}" stroke-width="1.4"/>'
        )
        lines = words.split("\n")
        for number, line in enumerate(lines):
            at = y + h / 2 + size * 0.35 + (size + 3) * (number - (len(lines) - 1) / 2)
            weight = ' font-weight="600"' if number == 0 else ""
            self.words(x + w / 2, at, line, color, size, f'text-anchor="middle"{weight}')

    def words(
        self, x: float, y: float, text: str, color: str = SOFT, size: int = 12, extra: str = ""
    ) -> None:
        self.parts.append(
            f'<text x="{x:g}" y="{y:.0f}" fill="{color}" font-size="{size}" {extra}>'
            f"{escape(text)}</text>"
        )

    def arrow(self, *points: tuple[float, float], dashed: bool = False) -> None:
        path = "M" + " L".join(f"{x:g} {y:g}" for x, y in points)
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self.parts.append(
            f'<path d="{path}" fill="none" stroke="{INK}" stroke-width="1.3" '
            f'marker-end="url(#tip)"{dash}/>'
        )

    def dot(self, x: float, y: float, color: str, r: float = 4) -> None:
        self.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r:g}" fill="{color}"/>')

    def bar(
        self, x: float, y: float, w: float, h: float, color: str, opacity: float = 0.75
    ) -> None:
        self.parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{w:.1f}" height="{h:g}" fill="{color}" '
            f'fill-opacity="{opacity:g}"/>'
        )

    def line(
        self, points: Sequence[tuple[float, float]], color: str, dashed: bool = False,
        width: float = 1.6,
    ) -> None:  # fmt: skip
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        dash = ' stroke-dasharray="4 4"' if dashed else ""
        self.parts.append(
            f'<polyline points="{path}" fill="none" stroke="{color}" '
            f'stroke-width="{width:g}"{dash}/>'
        )

    def image(self, x: float, y: float, w: float, h: float, data: str, kind: str = "png") -> None:
        """data: base64."""
        self.parts.append(
            f'<image x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" '
            f'style="image-rendering:pixelated" href="data:image/{kind};base64,{data}"/>'
        )

    def save(self, name: str) -> None:
        """Write docs/images/NAME."""
        foot = f"commit {commit()}"
        self.words(WIDTH - MARGIN, self.height - 7, foot, SOFT, SMALL, 'text-anchor="end"')
        (IMAGES / name).write_text(
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {self.height}" '
            f'width="{WIDTH * SHOWN:g}" height="{self.height * SHOWN:g}" role="img" '
            f'font-family="system-ui, sans-serif"><title>{escape(self.title)}</title>'
            f'<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
            f'markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z" fill="{INK}"/></marker></defs>'
            f'<rect width="{WIDTH}" height="{self.height}" rx="6" fill="#fff"/>'
            f"{''.join(self.parts)}</svg>\n"
        )
        print(f"drawn: docs/images/{name}")


# -- chains -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Node:
    """What flows: its name, its shape, and its color by role."""

    name: str
    shape: str = ""
    color: str = BLUE


@dataclass(frozen=True)
class Via:
    """What happens between two rows, and what else enters there."""

    words: str = ""
    entering: str = ""
    entering_color: str = GREEN


@dataclass
class Flow:
    """Rows of one or two nodes from top to bottom, and what happens between them."""

    title: str
    rows: list[Node | tuple[Node, Node]]
    vias: list[Via]
    again: tuple[int, int, str] | None = None
    """From a row back to one above it, and the words for that."""
    notes: list[str] = field(default_factory=list)

    def draw(self, name: str) -> None:
        gap, low, high = 32, 28, 42
        heights = [high if isinstance(row, tuple) else low for row in self.rows]
        total = 10 + sum(heights) + gap * (len(self.rows) - 1)
        notes = wrap(" ".join([*self.notes, *([self.again[2]] if self.again else [])]), 58)
        d = Drawing(total + 6 + 17 * len(notes), self.title)
        right = WIDTH - MARGIN - (10 if self.again else 0)
        tops: list[int] = []
        top = 10
        for height in heights:
            tops.append(top)
            top += height + gap
        for row, y, height in zip(self.rows, tops, heights, strict=True):
            self._row(d, row, y, height, right)
        for number, via in enumerate(self.vias):
            self._via(d, number, via, tops, heights, right)
        if self.again:
            begin, end, _ = self.again
            y, x = (tops[at] + heights[at] / 2 for at in (begin, end)), WIDTH - 10
            below, above = y
            d.arrow((right, below), (x, below), (x, above), (right + 1, above), dashed=True)
        for number, note in enumerate(notes):
            d.words(MARGIN, total + 14 + 17 * number, note, SOFT, 12)
        d.save(name)

    def _row(
        self, d: Drawing, row: Node | tuple[Node, Node], y: float, height: float, right: float
    ) -> None:
        if isinstance(row, tuple):
            half = (right - MARGIN - 12) / 2
            for x, node in zip((MARGIN, MARGIN + half + 12), row, strict=True):
                d.box(x, y, half, height, f"{node.name}\n{node.shape}", node.color)
            return
        d.box(MARGIN, y, right - MARGIN, height, "", row.color)
        inside = y + height / 2 + 5
        anchor = "" if row.shape else 'text-anchor="middle" '
        x = MARGIN + 10 if row.shape else (MARGIN + right) / 2
        d.words(x, inside, row.name, row.color, 13, f'{anchor}font-weight="600"')
        d.words(right - 10, inside, row.shape, row.color, 13, 'text-anchor="end"')

    def _via(
        self, d: Drawing, number: int, via: Via, tops: Sequence[float], heights: Sequence[float],
        right: float,
    ) -> None:  # fmt: skip
        begin, end = tops[number] + heights[number], tops[number + 1]
        is_pair = [isinstance(self.rows[at], tuple) for at in (number, number + 1)]
        middle = (MARGIN + right) / 2
        left_x, right_x = MARGIN + 16, right - 16
        if is_pair == [False, False]:
            d.arrow((middle, begin), (middle, end - 1))
        for x in (left_x, right_x) if any(is_pair) else ():
            d.arrow((x, begin), (x, end - 1))
        if via.words:
            x = middle - 8 if not any(is_pair) else middle
            anchor = "end" if not any(is_pair) else "middle"
            d.words(x, (begin + end) / 2 + 4, via.words, INK, 12, f'text-anchor="{anchor}"')
        if via.entering:
            width = 10 + 6.6 * len(via.entering)
            d.box(right - width, begin + 5, width, 21, "", via.entering_color)
            d.words(right - width / 2, begin + 20, via.entering, via.entering_color, 12,
                    'text-anchor="middle"')  # fmt: skip
            d.arrow((right - width, begin + 15.5), (middle + 4, begin + 15.5))
