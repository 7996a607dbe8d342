"""Rewards and ends of episodes that a world predicts along its rollouts, against the true ones.

A controller that learns in imagination sees nothing else of its task.  Horizon h is the frame h
steps after the last context frame; the actions are those of the episode.  The baseline is the
reward of the last true frame: a reward that hardly changes is easily predicted.

Letters: n clips, T frames, C context frames, H horizons, R resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from evaluation.measures.intervals import bootstrap_means, confidence_interval
from evaluation.measures.sample_clips import ClipSource, sample_clips

BATCH_SIZE = 64  # clips


class Arrival(Protocol):
    """What a rollout's state says of its arrival: (B,) each."""

    reward: Tensor
    continues: Tensor


S = TypeVar("S", bound=Arrival)


class RewardWorld(Protocol[S]):
    """What this asks of a world (models/world.py), whose states are of type S."""

    @property
    def context(self) -> int:
        """Frames that it can make use of."""
        ...

    def reset(self, frames: Tensor, actions: Tensor) -> S:
        """(B, T, 3, H, W) uint8 and (B, T - 1, ...) -> the state at the last frame."""
        ...

    def step(self, state: S, action: Tensor) -> S: ...


@torch.inference_mode()
def predict_rewards(
    world: RewardWorld[S],
    frames: Tensor,
    actions: Tensor,
    context: int,
    horizons: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Roll out the world after `context` true frames: the rewards and the probabilities that the
    episode continues at the horizons, (B, H) each.

    frames: (B, T >= C, 3, H, W) uint8; actions: (B, T >= C - 1 + last horizon, ...).
    """
    state = world.reset(frames[:, :context], actions[:, : context - 1])
    rewards, continues = {}, {}
    for step in range(1, max(horizons) + 1):
        state = world.step(state, actions[:, context - 2 + step])
        if step in horizons:
            rewards[step] = state.reward.float().cpu()
            continues[step] = state.continues.float().cpu()
    by_horizon = [torch.stack([found[h] for h in horizons], 1) for found in (rewards, continues)]
    return by_horizon[0], by_horizon[1]


def reward_prediction(
    world: RewardWorld[S],
    clips: ClipSource,
    horizons: Sequence[int],
    num_clips: int = 256,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure a world with a reward head on held-out clips: lists over the horizons, for JSON.

    `correlation`, `mae` and `bias` (predicted minus true), the first two also of the baseline, with
    95% intervals by a bootstrap over whole sources.  `continue_auc` is the chance that an end is
    given a lower probability of going on than another frame; None where no clip reaches an end.
    Correlations are NaN-free: None where rewards do not vary.
    """
    context = world.context
    indices, sources = sample_clips(clips, num_clips, seed)
    at = np.asarray(horizons) + context - 1
    found: dict[str, list[np.ndarray]] = {name: [] for name in ("true", "last", "model")}
    ends, continues = [], []
    for start in tqdm(range(0, len(indices), BATCH_SIZE), "rewards", leave=False):
        clip: Any = clips.batch(indices[start : start + BATCH_SIZE])
        rewards, going_on = predict_rewards(world, clip.frames, clip.actions, context, horizons)
        true = clip.rewards.double().numpy()
        found["true"].append(true[:, at])
        found["last"].append(np.repeat(true[:, context - 1 : context], len(at), axis=1))
        found["model"].append(rewards.double().numpy())
        continues.append(going_on.numpy())
        if clip.terminals is not None:
            ends.append(clip.terminals.numpy()[:, at])
    true, last, model = (np.concatenate(found[name]) for name in ("true", "last", "model"))
    result: dict[str, Any] = {
        "n": len(indices),
        "sources": len(np.unique(sources)),
        "horizons": list(horizons),
        "bias": (model - true).mean(0).tolist(),
        "mean": true.mean(0).tolist(),
    }
    scale = float(np.abs(true).max()) or 1.0  # what hardly varies is told by its own scale
    for prefix, predicted in (("", model), ("copy_last_", last)):
        moments = _moments(true / scale, predicted / scale)
        for name, measure, unit in (("correlation", _correlation, 1.0), ("mae", _mae, scale)):
            values = measure(moments.mean(0, keepdims=True))[0]
            low, high = confidence_interval(
                measure(_resampled(moments, sources, seed).reshape(-1, *moments.shape[1:]))
            )
            for suffix, numbers in (("", values), ("_low", low), ("_high", high)):
                result[f"{prefix}{name}{suffix}"] = _for_json(numbers * unit)
    if ends:
        result["continue_auc"] = area_under_roc(np.concatenate(ends), np.concatenate(continues))
    return result


def _moments(true: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """What correlation and error are functions of, by clip: two (n, H) -> (n, 6, H)."""
    # about a common center, since squares of large numbers lose digits
    x, y = true - true.mean(0), predicted - true.mean(0)
    return np.stack([x, y, x * x, y * y, x * y, np.abs(x - y)], axis=1)


def _resampled(moments: np.ndarray, sources: np.ndarray, seed: int) -> np.ndarray:
    """Means of moments, (n, 6, H), over whole sources drawn with replacement: (R, 6 H)."""
    return bootstrap_means(moments.reshape(len(moments), -1), sources, seed=seed)


def _correlation(means: np.ndarray) -> np.ndarray:
    """Pearson's r from means of moments: (R, 6, H) -> (R, H); NaN where something is constant."""
    x, y, xx, yy, xy = (means[:, k] for k in range(5))
    spread = (xx - x * x).clip(min=0) * (yy - y * y).clip(min=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(spread > 1e-18, (xy - x * y) / np.sqrt(spread), np.nan)


def _mae(means: np.ndarray) -> np.ndarray:
    """Mean absolute error from means of moments: (R, 6, H) -> (R, H)."""
    return means[:, 5]


def area_under_roc(ends: np.ndarray, continues: np.ndarray) -> float | None:
    """Area under the ROC curve of `1 - continues` for ends, (n, H) each (Mann & Whitney 1947)."""
    is_end, score = ends.ravel(), -continues.ravel()
    if not is_end.any() or is_end.all():
        return None
    _, rank, counts = np.unique(score, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - (counts - 1) / 2  # ties share their mean rank
    positives = int(is_end.sum())
    above = middle[rank][is_end].sum() - positives * (positives + 1) / 2
    return float(above / (positives * (len(is_end) - positives)))


def _for_json(values: np.ndarray) -> list[float | None]:
    return [float(v) if np.isfinite(v) else None for v in values]
