"""All ratios in one picture."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

from bench.pairs import Row
from data.shards import write_whole


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw ratios with their intervals on a log axis, bars and aims as ticks; none, no picture."""
    shown = [row for row in rows if row.ratio is not None]
    if not shown:
        return
    figure, axes = pyplot.subplots(figsize=(11, 1.2 + 0.26 * len(shown)), layout="constrained")
    for place, row in enumerate(shown):
        assert row.ratio is not None
        low, high = row.low or row.ratio, row.high or row.ratio
        colour = {True: "tab:green", False: "tab:red", None: "tab:gray"}[row.met]
        axes.plot([low, high], [place, place], color=colour, linewidth=3, alpha=0.5)
        axes.plot(row.ratio, place, "o", color=colour, markersize=5)
        if row.bar is not None:
            axes.vlines(row.bar, place - 0.4, place + 0.4, "black", linestyles="solid")
        if row.aim is not None:
            axes.vlines(row.aim, place - 0.4, place + 0.4, "black", linestyles="dotted")
    axes.axvline(1, color="black", linewidth=0.5)
    axes.set_xscale("log")
    axes.set_xlabel("times better than the peer; solid tick: bar, dotted: aim")
    axes.set_yticks(range(len(shown)), [f"{r.what}  |  {r.against}" for r in shown], fontsize=7)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    held = io.BytesIO()
    figure.savefig(held, format="png", dpi=110)
    pyplot.close(figure)
    write_whole(path, held.getbuffer())
