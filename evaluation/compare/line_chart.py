"""Curves of several runs as one SVG image, with bands for intervals; readable without color."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

# Okabe and Ito: told apart by most who do not see all colors
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8a8a00")
DASHES = ("", "6 3", "2 2", "8 2 2 2", "12 3", "4 1 1 1")
WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 360, 200, 52, 26, 22
LARGEST = 1e30  # of a value that is drawn: the rest has diverged
MAX_POINTS = 120  # of a curve; more are not seen at this width


@dataclass(frozen=True)
class Line:
    name: str
    points: Sequence[tuple[float, float]]
    band: Sequence[tuple[float, float]] = ()
    """Low and high at each point."""
    style: int = 0
    """Number of the run, which has one color and one dash everywhere."""


def stroke(style: int) -> str:
    """The attributes of a run's line: no two of 48 runs have both the same color and dash."""
    dash = DASHES[(style + style // len(COLORS)) % len(DASHES)]
    attributes = f'stroke="{COLORS[style % len(COLORS)]}"'
    return f'{attributes} stroke-dasharray="{dash}"' if dash else attributes


def draw(title: str, lines: Sequence[Line], x_label: str) -> str:
    """Draw curves over one pair of axes; empty where there is no finite point."""
    lines = [line for line in map(_thinned, lines) if line.points]
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    ys += [end for line in lines for ends in line.band for end in ends]
    if not xs:
        return ""
    x_low, x_high = min(xs), max(xs)
    y_low, y_high = min(ys), max(ys)
    pad = (y_high - y_low or abs(y_high) or 1.0) * 0.05
    y_low, y_high = y_low - pad, y_high + pad

    def place(x: float, y: float) -> str:
        across = LEFT + (x - x_low) / (x_high - x_low or 1) * (WIDTH - LEFT - 8)
        up = HEIGHT - BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - BOTTOM - TOP)
        return f"{across:.1f},{up:.1f}"

    parts = [f'<text x="{LEFT}" y="14" class="t">{escape(title)}</text>']
    for value in _ticks(y_low, y_high):
        start, end = place(x_low, value), place(x_high, value)
        (x1, y1), (x2, y2) = start.split(","), end.split(",")
        parts.append(f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" class="g"/>')
        parts.append(f'<text x="{LEFT - 4}" y="{float(y1) + 3:.1f}" class="y">{value:.4g}</text>')
    for value, anchor in ((x_low, "start"), (x_high, "end")):
        x = place(value, y_low).split(",")[0]
        text = f'<text x="{x}" y="{HEIGHT - 10}" text-anchor="{anchor}">{value:g}</text>'
        parts.append(text)
    middle = (LEFT + WIDTH) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 10}" text-anchor="middle">{x_label}</text>')
    for line in lines:
        if line.band:
            low = [place(x, b[0]) for (x, _), b in zip(line.points, line.band, strict=True)]
            high = [place(x, b[1]) for (x, _), b in zip(line.points, line.band, strict=True)]
            color = COLORS[line.style % len(COLORS)]
            points = " ".join([*low, *reversed(high)])
            parts.append(f'<polygon points="{points}" fill="{color}" fill-opacity="0.12"/>')
    for line in lines:
        points = " ".join(place(x, y) for x, y in line.points)
        last = line.points[-1][1]
        hint = f"<title>{escape(line.name)}: {last:.4g} at the end</title>"
        if len(line.points) == 1:
            x, y = points.split(",")
            parts.append(f'<circle cx="{x}" cy="{y}" r="3" {stroke(line.style)}>{hint}</circle>')
        else:
            parts.append(f'<polyline points="{points}" {stroke(line.style)}>{hint}</polyline>')
    label = escape(f"{title}: " + ", ".join(f"{x.name} {x.points[-1][1]:.4g}" for x in lines[:8]))
    opening = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">'
    return f"{opening}{''.join(parts)}</svg>"


def _thinned(line: Line) -> Line:
    """Leave out points that have diverged, and most of very many; the last one stays."""
    band = line.band or [(0.0, 0.0)] * len(line.points)
    kept = [
        (point, ends)
        for point, ends in zip(line.points, band, strict=True)
        if all(abs(value) < LARGEST for value in (*point, *ends))  # nor is NaN
    ]
    every = -(-len(kept) // MAX_POINTS)
    if every > 1:
        kept = [*kept[:-1:every], kept[-1]]
    points = [point for point, _ in kept]
    return Line(line.name, points, [ends for _, ends in kept] if line.band else (), line.style)


def _ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers between two."""
    span = (high - low) / 4
    unit = 10 ** math.floor(math.log10(span))
    step = next(unit * m for m in (1, 2, 5, 10) if unit * m >= span)
    first = math.ceil(low / step)
    return [step * n for n in range(first, math.floor(high / step) + 1)]
