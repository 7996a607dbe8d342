"""What an evaluation draws for its report.

Letters: n attempts, T steps, H and W pixels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.clips import Clips
from evaluation.measures.metrics import mse
from evaluation.measures.open_loop import imagine
from evaluation.measures.sample_clips import spread_windows
from evaluation.report import plots
from evaluation.session import Session

FILM = 16  # frames to show of a clip, at most


@torch.inference_mode()
def draw_films(
    session: Session, clips: Clips, horizons: tuple[int, ...], films: int, seed: int
) -> None:
    """Draw truth above imagination for the windows, of 32, in which the most changes, in the place
    of the films before."""
    for old in session.plots.glob("film-*.png"):
        old.unlink()
    if not films:
        return
    context = session.world.context
    shown = [0, *horizons][:FILM]
    chosen, _ = spread_windows(clips, 32, seed)
    clip = clips.batch(chosen)
    truth = clip.frames[:, [context - 1 + h for h in shown]]
    change = mse(truth[:, 1:], truth[:, :1].expand_as(truth[:, 1:])).mean(1)
    most = change.argsort(descending=True)[:films]
    frames, actions = clip.frames[most].to(session.device), clip.actions[most].to(session.device)
    imagined = imagine(session.world, frames, actions, context, shown)
    for number, row in enumerate(most):
        rows = [("truth", truth[row]), ("imagined", imagined[number].cpu())]
        titles = [f"+{h}" if h else "start" for h in shown]
        plots.strip(rows, titles, session.plots / f"film-{number}.png")


def draw_attempts(films: Tensor, reached: np.ndarray, path: Path, shown: int = 6) -> None:
    """Draw attempts (n, 1 + T, 3, H, W), the goal first in each: failures above successes."""
    reached = reached[: len(films)]
    failed, hit = np.flatnonzero(~reached), np.flatnonzero(reached)
    failed = failed[: max(shown - len(hit), shown * 2 // 3)]
    chosen = [*failed, *hit[: shown - len(failed)]]
    steps = list(range(0, films.shape[1] - 1, 5))
    rows = [
        ("reached" if reached[i] else "failed", films[i][[0, *(1 + s for s in steps)]])
        for i in chosen
    ]
    plots.strip(rows, ["goal", *(f"+{s}" for s in steps)], path, error=False)


def draw(folder: Path, metrics: dict[str, Any]) -> None:
    """Draw what follows from the figures alone."""
    if metrics["open_loop"]["horizons"]:
        plots.pixel_curves(metrics["open_loop"], folder / "curves_pixels.png")
        if metrics["open_loop"]["agent_px"]:
            plots.state_curves(metrics["open_loop"], folder / "curves_states.png")
    if any(row["n"] for row in metrics["task"].values()):
        plots.bars(metrics["task"], "score", "task: mean score", folder / "task.png")
    for protocol, rows in metrics["goal"].items():
        if any(row["n"] for row in rows.values()):
            plots.bars(rows, "success", f"goal, {protocol}", folder / f"goal-{protocol}.png")
