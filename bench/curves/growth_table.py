"""Curves of cost: what was measured at each size, as a table and as a figure."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

from data.io.files import atomic_write

COLUMNS = 3  # of the figure


@dataclass(frozen=True)
class Measured:
    """A cost at one size."""

    part: str
    """What grows: the heading of its curves."""
    what: str
    """What is paid; its unit stands at the end, after a comma."""
    size: float
    value: float


def curves(rows: Sequence[Measured]) -> dict[tuple[str, str], dict[float, float]]:
    """Values by size, for each part and what is paid, in the order of the rows."""
    found: dict[tuple[str, str], dict[float, float]] = {}
    for row in rows:
        found.setdefault((row.part, row.what), {})[row.size] = row.value
    return found


def as_markdown(rows: Sequence[Measured]) -> str:
    """A table for each part: a row for what is paid, a column for each size."""
    lines: list[str] = []
    found = curves(rows)
    for part in dict.fromkeys(row.part for row in rows):
        own = {what: values for (of, what), values in found.items() if of == part}
        sizes = sorted({size for values in own.values() for size in values})
        lines += ["", f"| {part} | " + " | ".join(f"{size:,.4g}" for size in sizes) + " |"]
        lines += ["|---" * (len(sizes) + 1) + "|"]
        for what, values in own.items():
            cells = (_number(values[size]) if size in values else "-" for size in sizes)
            lines.append(f"| {what} | " + " | ".join(cells) + " |")
    return "\n".join(lines[1:])


def draw(rows: Sequence[Measured], path: Path) -> None:
    """A panel for each curve, on log axes, beside a line of what is linear by nature."""
    found = curves(rows)
    count = -(-len(found) // COLUMNS)
    figure, panels = pyplot.subplots(
        count, COLUMNS, figsize=(4 * COLUMNS, 2.6 * count), squeeze=False, layout="constrained"
    )
    for panel in panels.flat[len(found) :]:
        panel.set_axis_off()
    for panel, ((part, what), values) in zip(panels.flat, found.items(), strict=False):
        sizes = sorted(values)
        heights = [max(values[size], 1e-6) for size in sizes]
        panel.loglog(sizes, heights, "o-")
        panel.loglog(sizes, [heights[0] * size / sizes[0] for size in sizes], ":", color="gray")
        panel.set(xlabel=part, title=what)
        panel.title.set_fontsize(9)
        panel.set_ylim(min(heights) / 2, max(heights) * 2)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    pyplot.close(figure)
    atomic_write(path, buffer.getbuffer())


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
