"""Draw the images of a report.

Letters: n attempts, T steps, H and W pixels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data.clips import Clips
from data.io.files import atomic_path
from evaluation.measures.metrics import mse
from evaluation.measures.open_loop import imagine
from evaluation.measures.sample_clips import sample_clips
from evaluation.protocols.goals import PROTOCOLS
from evaluation.report import plots
from evaluation.session import Session
from pipeline.video import make_grid, write_mp4

MAX_FRAMES = 16  # most frames to draw of a clip
FILM_COLUMNS, FILM_FPS = 6, 20.0  # twice as fast as the simulator
HOLD = 20  # frames that a film ends with
MAX_FILMED = 100  # steps of a clip's film
FILM_GAP = 4  # pixels between truth and rollout
WEBP_SIDE = 16383  # pixels, its largest


@torch.inference_mode()
def draw_videos(
    session: Session, clips: Clips, horizons: tuple[int, ...], num_videos: int, seed: int
) -> None:
    """Draw the true frames above the model rollout, for those of 32 clips that change the most.

    Replaces the strips of an earlier evaluation.
    """
    for pattern in ("video-*.png", "film-*.webp"):
        for old in session.plots.glob(pattern):
            old.unlink()
    if not num_videos:
        return
    context = session.world.context
    shown = [0, *horizons][:MAX_FRAMES]
    steps = list(range(min(shown[-1], MAX_FILMED) + 1))
    steps += [step for step in shown if step > steps[-1]]
    indices, _ = sample_clips(clips, 32, seed)
    clip = clips.batch(indices)
    truth = clip.frames[:, [context - 1 + h for h in steps]]
    drawn = [steps.index(h) for h in shown]
    change = mse(truth[:, drawn[1:]], truth[:, :1].expand(-1, len(drawn) - 1, -1, -1, -1)).mean(1)
    top = change.argsort(descending=True)[:num_videos]
    frames, actions = clip.frames[top].to(session.device), clip.actions[top].to(session.device)
    rollouts = imagine(session.world, frames, actions, context, steps).cpu()
    for number, row in enumerate(top):
        pair = truth[row], rollouts[number]
        rows = [("truth", pair[0][drawn]), ("model rollout", pair[1][drawn])]
        titles = [f"+{h}" if h else "start" for h in shown]
        plots.draw_strip(rows, titles, session.plots / f"video-{number}.png")
        write_film(session.plots, number, *(part[: MAX_FILMED + 1] for part in pair))


def write_film(folder: Path, number: int, truth: Tensor, rollout: Tensor) -> None:
    """Write the frames (T, 3, H, W) of two clips next to each other, one step below the other, as
    FOLDER/film-NUMBER-T.webp: a page shows a part of it."""
    rows = min(len(truth), len(rollout), WEBP_SIDE // truth.shape[-2])
    gap = torch.full((rows, 3, truth.shape[-2], FILM_GAP), 255, dtype=torch.uint8)
    wide = torch.cat([truth[:rows], gap, rollout[:rows]], dim=3)
    sheet = wide.permute(0, 2, 3, 1).flatten(0, 1).numpy()
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder / f"film-{number}-{rows}.webp") as partial:
        Image.fromarray(sheet).save(partial, "WEBP", quality=80)


def draw_attempts(videos: Tensor, success: np.ndarray, path: Path, max_rows: int = 6) -> None:
    """Draw attempts (n, 2 + T, 3, H, W), the goal and the start first in each: failures above
    successes."""
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


def film_episodes(videos: Tensor, steps: np.ndarray, path: Path, count: int = 12) -> None:
    """Write a video of episodes (n, 1 + T, 3, H, W) side by side, their starts first: failures
    before successes, and of these the slowest first.

    steps: (n,) or more, until success, 0 where there is none.  A frame turns green at success.
    """
    steps = steps[: len(videos)]
    order = np.lexsort((-steps, steps > 0))[:count]
    length = 1 + int(steps.max()) if steps.all() else videos.shape[1]
    images = []
    for step in [*range(length), *[length - 1] * HOLD]:
        tiles = [_framed(videos[i, step], bool(0 < steps[i] <= step)) for i in order]
        tiles += [torch.full_like(tiles[0], 128)] * (-len(tiles) % FILM_COLUMNS)
        rows = torch.stack(tiles).unflatten(0, (-1, FILM_COLUMNS))
        images.append(make_grid(list(rows), gap=0))
    write_mp4(path, images, FILM_FPS)


def _framed(frame: Tensor, reached: bool, width: int = 2) -> Tensor:
    """Put a border around a frame, (3, H, W) uint8: striped green where the goal is reached, else
    plain gray."""
    border = torch.tensor([42, 157, 90] if reached else [128, 128, 128], dtype=torch.uint8)
    height, length = frame.shape[1:]
    framed = border[:, None, None].repeat(1, height + 2 * width, length + 2 * width)
    if reached:  # to be seen without color, too
        down, across = (torch.arange(side) for side in framed.shape[1:])
        framed[:, (down[:, None] + across) % 6 < 3] = 255
    framed[:, width:-width, width:-width] = frame
    return framed


def draw_plots(folder: Path, metrics: dict[str, Any]) -> None:
    """Draw the plots of the metrics."""
    if metrics["open_loop"]["horizons"]:
        plots.pixel_curves(metrics["open_loop"], folder / "curves_pixels.png")
        if metrics["open_loop"]["agent_px"]:
            plots.state_curves(metrics["open_loop"], folder / "curves_states.png")
    if any(row["n"] for row in metrics["task"].values()):
        axis = "mean of the episodes' highest reward, 0 to 1"
        plots.bar_chart(
            metrics["task"], "score", "task: mean score", folder / "task.png", axis=axis
        )
    if any(row["n"] for row in metrics["returns"].values()):
        name = "mean return in the environment"
        plots.bar_chart(metrics["returns"], "return", name, folder / "returns.png", limits=None)
    if metrics["return_curve"]:
        plots.return_curve(metrics["return_curve"], folder / "return_curve.png")
    for protocol, rows in metrics["goal"].items():
        if any(row["n"] for row in rows.values()):
            axis = f"share of goals {PROTOCOLS[protocol].goal_offset} steps away that are reached"
            path = folder / f"goal-{protocol}.png"
            plots.bar_chart(rows, "success", f"goal, {protocol}", path, axis=axis)
