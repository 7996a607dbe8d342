"""Plot all ratios in one figure."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

from bench.races.pairs import Row
from data.io.files import atomic_write


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw ratios with their intervals on a log axis, target and stretch as ticks; without a ratio,
    no file is written."""
    with_ratio = [row for row in rows if row.ratio is not None]
    if not with_ratio:
        return
    figure, axes = pyplot.subplots(figsize=(11, 1.2 + 0.26 * len(with_ratio)), layout="constrained")
    for y, row in enumerate(with_ratio):
        assert row.ratio is not None
        low, high = row.low or row.ratio, row.high or row.ratio
        color = {True: "tab:green", False: "tab:red", None: "tab:gray"}[row.passed]
        axes.plot([low, high], [y, y], color=color, linewidth=3, alpha=0.5)
        axes.plot(row.ratio, y, "o", color=color, markersize=5)
        if row.target is not None:
            axes.vlines(row.target, y - 0.4, y + 0.4, "black", linestyles="solid")
        if row.stretch is not None:
            axes.vlines(row.stretch, y - 0.4, y + 0.4, "black", linestyles="dotted")
    axes.axvline(1, color="black", linewidth=0.5)
    axes.set_xscale("log")
    axes.set_xlabel("times better than the peer; solid tick: target, dotted: stretch")
    axes.set_yticks(
        range(len(with_ratio)), [f"{r.name}  |  {r.baseline}" for r in with_ratio], fontsize=7
    )
    axes.set_ylim(len(with_ratio) - 0.5, -0.5)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    pyplot.close(figure)
    atomic_write(path, buffer.getbuffer())
