"""Draw the images of a report.

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
from evaluation.measures.sample_clips import sample_clips
from evaluation.report import plots
from evaluation.session import Session

MAX_FRAMES = 16  # most frames to draw of a clip


@torch.inference_mode()
def draw_videos(
    session: Session, clips: Clips, horizons: tuple[int, ...], num_videos: int, seed: int
) -> None:
    """Draw the true frames above the model rollout, for those of 32 clips that change the most.

    Replaces the strips of an earlier evaluation.
    """
    for old in session.plots.glob("video-*.png"):
        old.unlink()
    if not num_videos:
        return
    context = session.world.context
    steps = [0, *horizons][:MAX_FRAMES]
    indices, _ = sample_clips(clips, 32, seed)
    clip = clips.batch(indices)
    truth = clip.frames[:, [context - 1 + h for h in steps]]
    change = mse(truth[:, 1:], truth[:, :1].expand_as(truth[:, 1:])).mean(1)
    top = change.argsort(descending=True)[:num_videos]
    frames, actions = clip.frames[top].to(session.device), clip.actions[top].to(session.device)
    rollouts = imagine(session.world, frames, actions, context, steps)
    for number, row in enumerate(top):
        rows = [("truth", truth[row]), ("model rollout", rollouts[number].cpu())]
        titles = [f"+{h}" if h else "start" for h in steps]
        plots.draw_strip(rows, titles, session.plots / f"video-{number}.png")


def draw_attempts(videos: Tensor, success: np.ndarray, path: Path, max_rows: int = 6) -> None:
    """Draw attempts (n, 1 + T, 3, H, W), the goal first in each: failures above successes."""
    success = success[: len(videos)]
    failed, succeeded = np.flatnonzero(~success), np.flatnonzero(success)
    failed = failed[: max(max_rows - len(succeeded), max_rows * 2 // 3)]
    indices = [*failed, *succeeded[: max_rows - len(failed)]]
    steps = list(range(0, videos.shape[1] - 1, 5))
    rows = [
        ("reached" if success[i] else "failed", videos[i][[0, *(1 + s for s in steps)]])
        for i in indices
    ]
    plots.draw_strip(rows, ["goal", *(f"+{s}" for s in steps)], path, error=False)


def draw_plots(folder: Path, metrics: dict[str, Any]) -> None:
    """Draw the plots of the metrics."""
    if metrics["open_loop"]["horizons"]:
        plots.pixel_curves(metrics["open_loop"], folder / "curves_pixels.png")
        if metrics["open_loop"]["agent_px"]:
            plots.state_curves(metrics["open_loop"], folder / "curves_states.png")
    if any(row["n"] for row in metrics["task"].values()):
        plots.bar_chart(metrics["task"], "score", "task: mean score", folder / "task.png")
    for protocol, rows in metrics["goal"].items():
        if any(row["n"] for row in rows.values()):
            plots.bar_chart(rows, "success", f"goal, {protocol}", folder / f"goal-{protocol}.png")
