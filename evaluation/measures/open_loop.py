"""Roll out held-out clips from their actions alone, and compare with the true frames.

Letters: B clips, T frames, C context frames, H horizons, S numbers of a simulator state.

Horizon h is the frame h steps after the last context frame.  Every figure has two no-change
baselines: the last true frame, and its reconstruction by the tokenizer.  delta-PSNR is what the
actions are worth: PSNR with the true actions minus PSNR with those of another clip.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from evaluation.measures.intervals import bootstrap_means, confidence_interval
from evaluation.measures.metrics import MIN_MSE, capped_psnr, mse, pooled_psnr, ssim
from evaluation.measures.sample_clips import ClipBatch, ClipSource, sample_clips

HORIZONS = (1, 2, 3, 4, 6, 8, 12, 16)
S = TypeVar("S")


class RolloutWorld(Protocol[S]):
    """What an open loop asks of a world (models/world.py), whose states are of type S."""

    @property
    def device(self) -> torch.device: ...

    @property
    def context(self) -> int:
        """Frames that it can make use of."""
        ...

    def reset(self, frames: Tensor, actions: Tensor) -> S:
        """(B, T, 3, H, W) uint8 and (B, T - 1, ...) -> the state at the last frame."""
        ...

    def step(self, state: S, action: Tensor) -> S: ...

    def decode(self, state: S) -> Tensor:
        """Give the frames of a state, (B, 3, H, W) uint8."""
        ...

    def reconstruct(self, frames: Tensor) -> Tensor:
        """Encode and decode (B, 3, H, W) uint8."""
        ...


class StatePredictor(Protocol):
    """Estimates simulator states from images (evaluation/readers/estimator.py)."""

    def predict(self, frames: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 -> (B, S) states."""
        ...

    def errors(self, truth: Tensor, predicted: Tensor) -> dict[str, Tensor]:
        """Two (..., S) -> distances (...), by the name of what they measure."""
        ...


@torch.inference_mode()
def imagine(
    world: RolloutWorld[S], frames: Tensor, actions: Tensor, context: int, horizons: Sequence[int]
) -> Tensor:
    """Roll out the world after `context` true frames.

    frames: (B, T >= C, 3, H, W) uint8; actions: (B, T >= C - 1 + last horizon, ...).
    Returns the frames at the horizons, (B, len(horizons), 3, H, W) uint8; horizon 0 is the last
    true frame, decoded.
    """
    state = world.reset(frames[:, :context], actions[:, : context - 1])
    images = {}
    for step in range(max(horizons) + 1):
        if step > 0:
            state = world.step(state, actions[:, context - 2 + step])
        if step in horizons:
            images[step] = world.decode(state)
    return torch.stack([images[horizon] for horizon in horizons], 1)


def open_loop(
    world: RolloutWorld[S],
    clips: ClipSource,
    horizons: Sequence[int] = HORIZONS,
    context: int | None = None,
    num_clips: int = 64,
    batch_size: int = 64,
    estimator: StatePredictor | None = None,
    intervals: bool = False,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, Any]:
    """Measure a world on held-out clips: lists over the horizons.

    clips: of at least context + max(horizons) frames; they are sampled evenly over the episodes.
    The result is for JSON: `n`, `sources`, `horizons`, and lists; state errors only with an
    `estimator`, and `_low` and `_high` only with `intervals` (a 95% bootstrap over whole sources,
    such as a demonstration and its perturbed copies).
    """
    context_frames = world.context if context is None else context
    indices, sources = sample_clips(clips, num_clips, seed)
    # Clips are in order of their episodes, so half the list away lies another episode.
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
        "context_frames": context_frames,
        "horizons": list(horizons),
        **_summary(per_clip),
        **(_intervals(per_clip, sources, seed) if intervals else {}),
    }


@torch.inference_mode()
def _measure(
    world: RolloutWorld[S],
    clip: ClipBatch,
    shuffled: Tensor,
    horizons: Sequence[int],
    context: int,
    estimator: StatePredictor | None,
) -> dict[str, Tensor]:
    """Give (B, H) figures of every clip: `mse:NAME`, `ssim:NAME` and `NAME:WHAT` distances."""
    frames, actions = clip.frames.to(world.device), clip.actions.to(world.device)
    shuffled_actions = torch.cat(
        [actions[:, : context - 1], shuffled.to(world.device)[:, context - 1 :]], 1
    )
    frame_index = torch.as_tensor(horizons) + context - 1
    truth = frames[:, frame_index.to(world.device)]
    last, flat = frames[:, context - 1], truth.flatten(0, 1)
    reconstructed = world.reconstruct(last)
    images_by_name = {
        "model": imagine(world, frames, actions, context, horizons),
        "shuffled": imagine(world, frames, shuffled_actions, context, horizons),
        "copy_last": last[:, None].expand_as(truth),
        "copy_last_reconstructed": reconstructed[:, None].expand_as(truth),
        "reconstruction": world.reconstruct(flat).view_as(truth),
    }
    metrics = {}
    for name, images in images_by_name.items():
        metrics[f"mse:{name}"] = mse(truth, images)
        metrics[f"ssim:{name}"] = ssim(truth, images)
    if estimator is not None and clip.states is not None:
        states = clip.states[:, frame_index].to(world.device)
        for name in ("model", "copy_last", "reconstruction"):
            predicted = images_by_name[name]
            single = name == "copy_last"  # one image for all horizons: read it once
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
    curves["delta_psnr"] = [true - shuffled for true, shuffled in pairs]
    return curves


def _intervals(
    per_clip: dict[str, Tensor], sources: np.ndarray, seed: int
) -> dict[str, list[float]]:
    """Bootstrap every curve over whole sources, all curves on the same resamples."""
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
    for name, means in curves.items():
        low, high = confidence_interval(means)
        intervals[f"{name}_low"], intervals[f"{name}_high"] = low.tolist(), high.tolist()
    return intervals
