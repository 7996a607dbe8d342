"""Pictures of an evaluation, as PNG files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from torch import Tensor

INK, GREY = "#1d3557", "#8d99ae"
LOOKS = {  # key in the figures -> label, colour, line
    "": ("imagined", INK, "-"),
    "copy_last_": ("last true frame", "#e07a5f", "--"),
    "copy_last_reconstructed_": ("last reconstructed frame", "#f2b84b", "--"),
    "shuffled_": ("actions of another clip", "#7b2cbf", ":"),
    "reconstruction_": ("tokenizer alone", "#2a9d8f", "-."),
}
SHOWN = 60.0  # dB; a copy of a still scene would stretch the axis


def pixel_curves(figures: dict[str, Any], path: Path) -> None:
    """Draw PSNR, SSIM and delta-PSNR by horizon, each with its baselines and 95% intervals."""
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.8))
    for axis, measure, label in zip(
        axes, ("psnr", "ssim", "delta_psnr"), ("PSNR, dB", "SSIM", "delta-PSNR, dB"), strict=True
    ):
        _curves(axis, figures, measure)
        axis.set_ylabel(label)
    axes[2].axhline(0, color=GREY, linewidth=0.8)
    axes[2].set_title("what the actions are worth", fontsize=9)
    _name_curves(axes[0])
    _save(figure, path)


def state_curves(figures: dict[str, Any], path: Path) -> None:
    """Draw the errors of agent and block by horizon beside the copy and the estimator's own."""
    measures = [m for m in ("agent_px", "block_px", "block_degrees") if figures.get(m)]
    figure, axes = plt.subplots(1, len(measures), figsize=(4.4 * len(measures), 3.8), squeeze=False)
    for axis, measure in zip(axes[0], measures, strict=True):
        _curves(axis, figures, measure)
        own = (figures.get("estimator_error") or {}).get(measure)
        if own is not None:
            axis.axhline(own, color=GREY, linewidth=0.8, label="estimator on real frames")
        axis.set_ylabel(measure.replace("_", ", "))
        axis.set_ylim(bottom=0)
    _name_curves(axes[0][0])
    _save(figure, path)


def _curves(axis: Any, figures: dict[str, Any], measure: str) -> None:
    horizons = figures["horizons"]
    most = SHOWN if measure.endswith("psnr") else np.inf
    for prefix, (label, colour, line) in LOOKS.items():
        values = figures.get(prefix + measure)
        if values is None:
            continue
        axis.plot(horizons, np.minimum(values, most), line, color=colour, label=label, marker=".")
        low, high = (figures.get(f"{prefix}{measure}_{end}") for end in ("low", "high"))
        if low is not None and high is not None:
            low, high = (np.minimum(np.array(end, float), most) for end in (low, high))
            axis.fill_between(horizons, low, high, color=colour, alpha=0.13, linewidth=0)
    axis.set_xlabel("steps after the last true frame")
    axis.set_xticks(horizons)
    axis.spines[["top", "right"]].set_visible(False)


def _name_curves(axis: Any) -> None:
    """Above the axis, where no curve runs through the names."""
    axis.legend(fontsize=7, frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)


def bars(rows: dict[str, dict[str, Any] | None], measure: str, title: str, path: Path) -> None:
    """Draw one figure of several policies with its interval; what was not measured is left out."""
    measured = {name: row for name, row in rows.items() if row and row.get(measure) is not None}
    figure, axis = plt.subplots(figsize=(6, 0.45 * len(measured) + 1.1))
    for at, (name, row) in enumerate(measured.items()):
        value = row[measure]
        reach = [[max(0.0, value - row["low"])], [max(0.0, row["high"] - value)]]
        axis.barh(at, value, color=INK if name == "controller" else GREY, height=0.6)
        axis.errorbar(value, at, xerr=reach, color="black", capsize=3, linewidth=1)
        axis.text(1.01, at, f"{value:.3f}  n={row['n']}", va="center", fontsize=8)
    axis.set_yticks(range(len(measured)), list(measured), fontsize=8)
    axis.invert_yaxis()
    axis.set_xlim(0, 1)
    axis.set_title(title, fontsize=9, loc="left")
    axis.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def reconstructions(truth: Tensor, other: Tensor, path: Path) -> None:
    """Draw frames (n, 3, H, W) uint8 above what the tokenizer makes of them, above the error."""
    strip([("truth", truth), ("tokenizer", other)], [""] * len(truth), path)


def strip(
    rows: Sequence[tuple[str, Tensor]], titles: Sequence[str], path: Path, error: bool = True
) -> None:
    """Draw films one above the other, and below them the error of the last against the first.

    rows: a name and (T, 3, H, W) uint8 each.
    """
    figure, axes = plt.subplots(
        len(rows) + error,
        len(titles),
        figsize=(1.15 * len(titles) + 0.7, 1.2 * len(rows) + 1.4),
        squeeze=False,
    )
    for line, (name, film) in zip(axes, rows, strict=False):
        for axis, frame in zip(line, film, strict=True):
            axis.imshow(frame.permute(1, 2, 0).cpu().numpy(), interpolation="nearest")
        line[0].set_ylabel(name, fontsize=8)
    if error:
        wrong = (rows[0][1].int() - rows[-1][1].int()).abs().amax(1)
        for axis, frame in zip(axes[-1], wrong, strict=True):
            picture = frame.cpu().numpy()
            axis.imshow(picture, cmap="magma", vmin=0, vmax=160, interpolation="nearest")
        axes[-1][0].set_ylabel("error", fontsize=8)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=8)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
        for spine in axis.spines.values():
            spine.set_color("#cccccc")
    figure.subplots_adjust(wspace=0.04, hspace=0.04, left=0.07, right=0.995, bottom=0.01, top=0.93)
    _save(figure, path, tight=False)


def _save(figure: Any, path: Path, tight: bool = True) -> None:
    if tight:
        figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".png.partial")
    figure.savefig(partial, dpi=110, format="png")
    plt.close(figure)
    partial.replace(path)
