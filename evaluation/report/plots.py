"""Plots and image strips of an evaluation, as PNG files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from torch import Tensor

from data.io.files import atomic_path
from evaluation.report.tables import OWN

NAVY, GRAY = "#1d3557", "#8d99ae"
CURVE_STYLES = {  # prefix of the metric -> label, color, line
    "": ("model rollout", NAVY, "-"),
    "copy_last_": ("last true frame", "#e07a5f", "--"),
    "copy_last_reconstructed_": ("last reconstructed frame", "#f2b84b", "--"),
    "shuffled_": ("actions of another clip", "#7b2cbf", ":"),
    "reconstruction_": ("tokenizer alone", "#2a9d8f", "-."),
}
MAX_AXIS_PSNR = 60.0  # dB; a copy of a still scene would stretch the axis
MAX_ERROR = 160  # of 255, the brightest of the color map
MIN_AXIS_DELTA = 0.5  # dB on either side of 0; less would make noise look like an effect


def pixel_curves(metrics: dict[str, Any], path: Path) -> None:
    """Draw PSNR, SSIM and delta-PSNR by horizon, each with its baselines and 95% intervals."""
    fig, axes = plt.subplots(1, 3, figsize=(13, 3.8))
    for ax, measure, label in zip(
        axes, ("psnr", "ssim", "delta_psnr"), ("PSNR, dB", "SSIM", "delta-PSNR, dB"), strict=True
    ):
        _curves(ax, metrics, measure)
        ax.set_ylabel(label)
    axes[2].axhline(0, color=GRAY, linewidth=0.8)
    low, high = axes[2].get_ylim()
    axes[2].set_ylim(min(low, -MIN_AXIS_DELTA), max(high, MIN_AXIS_DELTA))
    axes[2].set_title("gain from the true actions", fontsize=9)
    _add_legend(axes[0])
    _save(fig, path)


def state_curves(metrics: dict[str, Any], path: Path) -> None:
    """Draw the errors of agent and block by horizon, with the copy's and the estimator's own."""
    measures = [m for m in ("agent_px", "block_px", "block_degrees") if metrics.get(m)]
    fig, axes = plt.subplots(1, len(measures), figsize=(4.4 * len(measures), 3.8), squeeze=False)
    for ax, measure in zip(axes[0], measures, strict=True):
        _curves(ax, metrics, measure)
        estimator_error = (metrics.get("estimator_error") or {}).get(measure)
        if estimator_error is not None:
            ax.axhline(estimator_error, color=GRAY, linewidth=0.8, label="estimator on real frames")
        ax.set_ylabel(measure.replace("_", ", "))
        ax.set_ylim(bottom=0)
    _add_legend(axes[0][0])
    _save(fig, path)


def _curves(ax: Any, metrics: dict[str, Any], measure: str) -> None:
    horizons = metrics["horizons"]
    limit = MAX_AXIS_PSNR if measure.endswith("psnr") else np.inf
    for prefix, (label, color, line) in CURVE_STYLES.items():
        values = metrics.get(prefix + measure)
        if values is None:
            continue
        ax.plot(horizons, np.minimum(values, limit), line, color=color, label=label, marker=".")
        low, high = (metrics.get(f"{prefix}{measure}_{end}") for end in ("low", "high"))
        if low is not None and high is not None:
            low, high = (np.minimum(np.array(end, float), limit) for end in (low, high))
            ax.fill_between(horizons, low, high, color=color, alpha=0.13, linewidth=0)
    ax.set_xlabel("steps after the last true frame")
    ax.set_xticks(horizons)
    ax.spines[["top", "right"]].set_visible(False)


def _add_legend(ax: Any) -> None:
    """Place the legend above the axis, clear of the curves."""
    ax.legend(fontsize=7, frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)


def bar_chart(
    rows: dict[str, dict[str, Any] | None],
    measure: str,
    title: str,
    path: Path,
    limits: tuple[float, float] | None = (0, 1),
    axis: str = "",
) -> None:
    """Draw one metric of several policies with its interval; skip what was not measured.

    limits: of the axis; None is what the values need.  axis: its title, `measure` where empty.
    """
    measured = {name: row for name, row in rows.items() if row and row.get(measure) is not None}
    fig, ax = plt.subplots(figsize=(6, 0.45 * len(measured) + 1.3))
    for y, (name, row) in enumerate(measured.items()):
        value = row[measure]
        own = name in OWN
        ax.barh(y, value, color=NAVY if own else GRAY, hatch="//" if own else "", height=0.6)
        if row["low"] is not None:  # of one episode no interval is known
            error_bars = [[max(0.0, value - row["low"])], [max(0.0, row["high"] - value)]]
            ax.errorbar(value, y, xerr=error_bars, color="black", capsize=3, linewidth=1)
        label, place = f"{value:.3f}  n={row['n']}", ax.get_yaxis_transform()
        ax.text(1.01, y, label, va="center", fontsize=8, transform=place)
    ax.set_yticks(range(len(measured)), list(measured), fontsize=8)
    ax.invert_yaxis()
    if limits:
        ax.set_xlim(*limits)
    ax.set_xlabel(axis or measure, fontsize=8)
    ax.set_title(title, fontsize=9, loc="left")
    ax.spines[["top", "right"]].set_visible(False)
    _save(fig, path)


def return_curve(rounds: list[dict[str, Any]], path: Path) -> None:
    """Draw the mean return of each round of episodes against the steps recorded before it."""
    rows = [row for row in rounds if row["return"] is not None]
    steps, means = [row["steps_before"] for row in rows], [row["return"] for row in rows]
    fig, ax = plt.subplots(figsize=(5, 3))
    for step, row in zip(steps, rows, strict=True):
        if row["low"] is not None:
            ax.plot([step, step], [row["low"], row["high"]], color=NAVY, alpha=0.4)
    ax.plot(steps, means, color=NAVY, marker=".")
    ax.set_xlabel("steps recorded before")
    ax.set_title("mean return of the recorded episodes, by round", fontsize=9, loc="left")
    ax.spines[["top", "right"]].set_visible(False)
    _save(fig, path)


def draw_reconstructions(truth: Tensor, reconstructed: Tensor, path: Path) -> None:
    """Draw frames (n, 3, H, W) uint8 above their reconstruction, above the error."""
    draw_strip([("truth", truth), ("tokenizer", reconstructed)], [""] * len(truth), path)


def draw_strip(
    rows: Sequence[tuple[str, Tensor]], titles: Sequence[str], path: Path, error: bool = True
) -> None:
    """Draw videos one above the other, and below them the error of the last against the first.

    rows: a name and (T, 3, H, W) uint8 each.
    """
    names, videos = [name for name, _ in rows], [_as_images(video) for _, video in rows]
    if error:
        abs_error = (rows[0][1].int() - rows[-1][1].int()).abs().amax(1).cpu().numpy()
        names.append("error")
        videos.append(matplotlib.colormaps["magma"](abs_error / MAX_ERROR, bytes=True)[..., :3])
    height, width = videos[0].shape[1:3]
    gap = max(1, round(0.04 * width))  # pixels
    sheet = np.full(
        (len(videos) * (height + gap) - gap, len(titles) * (width + gap) - gap, 3), 255, np.uint8
    )
    for row, video in enumerate(videos):
        for column, image in enumerate(video):
            top, left = row * (height + gap), column * (width + gap)
            sheet[top : top + height, left : left + width] = image
    # one image: axes of their own would take most of an evaluation's time to draw
    fig, ax = plt.subplots(figsize=(1.15 * len(titles) + 0.7, 1.2 * len(rows) + 1.4))
    ax.imshow(sheet, interpolation="nearest")
    ax.xaxis.tick_top()
    ax.set_xticks(np.arange(len(titles)) * (width + gap) + width / 2, titles, fontsize=8)
    ax.set_yticks(np.arange(len(names)) * (height + gap) + height / 2, names, fontsize=8)
    for label in ax.get_yticklabels():
        label.set(rotation="vertical", verticalalignment="center")
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    fig.subplots_adjust(left=0.07, right=0.995, bottom=0.01, top=0.93)
    _save(fig, path, tight=False)


def _as_images(video: Tensor) -> np.ndarray:
    """(T, 3, H, W) -> (T, H, W, 3)."""
    return video.permute(0, 2, 3, 1).cpu().numpy()


def _save(fig: Any, path: Path, tight: bool = True) -> None:
    if tight:
        fig.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as partial:
        fig.savefig(partial, dpi=110, format="png")
    plt.close(fig)
