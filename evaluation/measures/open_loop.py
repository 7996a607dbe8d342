"""Imagine held-out clips from their actions alone, and compare with what really happened.

Letters: B windows, T frames, C context frames, H horizons, S numbers of a simulator state.

Horizon h is the frame h steps after the last true frame that the world was shown.  Beside every
figure stand two copies that cost nothing: the last true frame, and that frame as the tokenizer
gives it back.  delta-PSNR is what the actions are worth: PSNR with the true actions minus PSNR
with those of another window.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from evaluation.measures.intervals import bootstrap_means, confidence_interval
from evaluation.measures.metrics import MIN_MSE, capped_psnr, mse, pooled_psnr, ssim
from evaluation.measures.sample_clips import sample_clips

HORIZONS = (1, 2, 3, 4, 6, 8, 12, 16)


class StatePredictor(Protocol):
    """What measures the state of the world in a picture (evaluation/readers/estimator.py)."""

    def predict(self, frames: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 -> (B, S) states."""
        ...

    def errors(self, truth: Tensor, predicted: Tensor) -> dict[str, Tensor]:
        """Two (..., S) -> distances (...), by the name of what they measure."""
        ...


@torch.inference_mode()
def imagine(
    world: Any, frames: Tensor, actions: Tensor, context: int, horizons: Sequence[int]
) -> Tensor:
    """Show the world `context` true frames, then let it go on alone.

    frames: (B, T >= C, 3, H, W) uint8; actions: (B, T >= C - 1 + last horizon, ...).
    Returns the frames at the horizons; horizon 0 is the last true frame as the world gives it
    back: (B, len(horizons), 3, H, W) uint8.
    """
    state = world.reset(frames[:, :context], actions[:, : context - 1])
    images = []
    for step in range(max(horizons) + 1):
        if step > 0:
            state = world.step(state, actions[:, context - 2 + step])
        if step in horizons:
            images.append(world.decode(state))
    return torch.stack(images, 1)


def open_loop(
    world: Any,
    clips: Any,
    horizons: Sequence[int] = HORIZONS,
    context: int | None = None,
    num_clips: int = 64,
    batch_size: int = 64,
    estimator: StatePredictor | None = None,
    intervals: bool = False,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, Any]:
    """Measure a world on windows of held-out clips: lists over the horizons.

    clips: windows (data/clips.py) of at least context + max(horizons) frames.  Windows are spread
    evenly over the episodes and start anywhere.  The result is for JSON: `n`, `sources`,
    `horizons`, and lists; errors of states only with an `estimator`, and `_low` and `_high` (a 95%
    bootstrap over whole sources, such as a demonstration and its replays) only with `intervals`.
    """
    context_frames = world.context if context is None else context
    indices, sources = sample_clips(clips, num_clips, seed)
    # Windows are in order of their episodes, so half the list away lies another one.
    shuffled_indices = np.roll(indices, len(indices) // 2)

    batches_by_name: dict[str, list[Tensor]] = {}
    batches = range(0, len(indices), batch_size)
    for start in tqdm(batches, "open loop", disable=not progress, leave=False):
        rows = slice(start, start + batch_size)
        clip = clips.batch(indices[rows])
        shuffled = clips.batch(shuffled_indices[rows]).actions
        for name, values in _measure(
            world, clip, shuffled, horizons, context_frames, estimator
        ).items():
            batches_by_name.setdefault(name, []).append(values.cpu())
    per_clip = {name: torch.cat(values) for name, values in batches_by_name.items()}
    return {
        "n": len(indices),
        "sources": len(np.unique(sources)),
        "context": context_frames,
        "horizons": list(horizons),
        **_summary(per_clip),
        **(_intervals(per_clip, sources, seed) if intervals else {}),
    }


@torch.inference_mode()
def _measure(
    world: Any,
    clip: Any,
    shuffled: Tensor,
    horizons: Sequence[int],
    context: int,
    estimator: StatePredictor | None,
) -> dict[str, Tensor]:
    """Give (B, H) figures of every window: `mse:NAME`, `ssim:NAME` and `NAME:WHAT` distances."""
    frames, actions = clip.frames.to(world.device), clip.actions.to(world.device)
    mixed_actions = torch.cat(
        [actions[:, : context - 1], shuffled.to(world.device)[:, context - 1 :]], 1
    )
    frame_index = torch.as_tensor(horizons) + context - 1
    truth = frames[:, frame_index.to(world.device)]
    imagined = imagine(world, frames, actions, context, horizons)
    last, flat = frames[:, context - 1], truth.flatten(0, 1)
    reconstructed = world.tokenizer.decode(world.tokenizer.encode(last))
    images_by_name = {
        "model": imagined,
        "shuffled": imagine(world, frames, mixed_actions, context, horizons),
        "copy_last": last[:, None].expand_as(truth),
        "copy_last_reconstructed": reconstructed[:, None].expand_as(truth),
        "reconstruction": world.tokenizer.decode(world.tokenizer.encode(flat)).view_as(truth),
    }
    metrics = {}
    for name, images in images_by_name.items():
        metrics[f"mse:{name}"] = mse(truth, images)
        metrics[f"ssim:{name}"] = ssim(truth, images)
    if estimator is not None and clip.states is not None:
        states = clip.states[:, frame_index].to(world.device)
        for name in ("model", "copy_last", "reconstruction"):
            predicted = images_by_name[name]
            single = name == "copy_last"  # one picture for all horizons: read it once
            estimated = estimator.predict(predicted[:, 0] if single else predicted.flatten(0, 1))
            estimated = (
                estimated[:, None].expand_as(states) if single else estimated.view_as(states)
            )
            for error_name, distance in estimator.errors(states, estimated).items():
                metrics[f"{name}:{error_name}"] = distance
    return metrics


def _prefix(name: str) -> str:
    return "" if name == "model" else f"{name}_"


def _summary(per_clip: dict[str, Tensor]) -> dict[str, list[float]]:
    curves: dict[str, list[float]] = {}
    for key, values in per_clip.items():
        metric, name = key.split(":")
        columns = values.unbind(1)
        if metric == "mse":
            curves[f"{_prefix(name)}psnr"] = [pooled_psnr(c) for c in columns]
            curves[f"{_prefix(name)}psnr_mean_of_frames"] = [capped_psnr(c) for c in columns]
        elif metric == "ssim":
            curves[f"{_prefix(name)}ssim"] = [float(c.mean()) for c in columns]
        else:
            curves[f"{_prefix(metric)}{name}"] = [float(c.mean()) for c in columns]
    pairs = zip(curves["psnr"], curves["shuffled_psnr"], strict=True)
    curves["delta_psnr"] = [true - mixed for true, mixed in pairs]
    return curves


def _intervals(
    per_clip: dict[str, Tensor], sources: np.ndarray, seed: int
) -> dict[str, list[float]]:
    """Bootstrap every curve over whole sources, all curves on the same draws."""
    resampled = {
        key: bootstrap_means(values.double().numpy(), sources, seed=seed)
        for key, values in per_clip.items()
    }
    curves: dict[str, np.ndarray] = {}
    for key, means in resampled.items():
        metric, name = key.split(":")
        if metric == "mse":
            curves[f"{_prefix(name)}psnr"] = -10 * np.log10(means.clip(min=MIN_MSE))
        elif metric == "ssim":
            curves[f"{_prefix(name)}ssim"] = means
        else:
            curves[f"{_prefix(metric)}{name}"] = means
    curves["delta_psnr"] = curves["psnr"] - curves["shuffled_psnr"]
    intervals = {}
    for name, draws in curves.items():
        low, high = confidence_interval(draws)
        intervals[f"{name}_low"], intervals[f"{name}_high"] = low.tolist(), high.tolist()
    return intervals
