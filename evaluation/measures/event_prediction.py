"""Rare events that a world predicts along its rollouts: rewards, and true ends of episodes.

Half of the rollouts come to a reward or an end, at a step drawn evenly; the other half to none.
A reward counts as predicted where more than half the smallest true one is predicted at that very
step.  The baseline predicts one at every step.

Letters: n rollouts, C context frames, K steps.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from data.shards.episode_dataset import EpisodeDataset
from data.shards.shard_header import Split
from evaluation.measures.intervals import bootstrap_means, confidence_interval
from evaluation.measures.reward_prediction import RewardWorld, S, area_under_roc, predict_rewards
from evaluation.measures.sample_clips import choose_clips

BATCH_SIZE = 64
RESAMPLES = 500
MOST = 0.5  # share of steps with a reward above which rewards are no events


def event_prediction(
    world: RewardWorld[S],
    dataset: EpisodeDataset,
    split: Split = "test",
    steps: int = 16,
    num_rollouts: int = 256,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure a world with reward and continue heads on held-out episodes, for JSON.

    `reward_f1` is at the exact step, with its precision and recall; None where most steps are
    rewarded.  `continue_auc` is the chance that an end is given a lower probability of going on
    than another step; None without ends.  Intervals are 95%, by a bootstrap over whole sources.
    """
    context = world.context
    rewards = dataset.read_rows("rewards", 0, dataset.num_frames)
    ends = dataset.read_rows("terminals", 0, dataset.num_frames).astype(bool)
    earned = np.abs(rewards[rewards != 0])
    is_event = (rewards != 0) if len(earned) <= MOST * len(rewards) else np.zeros_like(ends)
    smallest = float(earned.min()) if len(earned) else 1.0
    episodes, frames = _choose(dataset, split, is_event, ends, context, steps, num_rollouts, seed)
    count = len(episodes)
    true = np.zeros((count, steps, 2), bool)
    valid = np.zeros((count, steps), bool)
    found = np.zeros((count, steps, 2))
    for first in tqdm(range(0, count, BATCH_SIZE), "events", leave=False):
        rows = range(first, min(first + BATCH_SIZE, count))
        past, actions = [], []
        for i in rows:
            episode, frame = int(episodes[i]), int(frames[i])
            last = min(frame + steps, dataset.length(episode) - 1)
            past.append(dataset.read(episode, "frames", frame + 1 - context, frame + 1))
            taken = dataset.read(episode, "actions", frame + 1 - context, last)
            padding = [(0, context - 1 + steps - len(taken))] + [(0, 0)] * (taken.ndim - 1)
            actions.append(np.pad(taken, padding, mode="edge"))
            row = int(dataset.first_rows[episode]) + frame + 1
            length = last - frame
            valid[i, :length] = True
            true[i, :length, 0] = is_event[row : row + length]
            true[i, :length, 1] = ends[row : row + length]
        clip = torch.from_numpy(np.stack(past)).permute(0, 1, 4, 2, 3)
        given = torch.from_numpy(np.stack(actions))
        earned_there, going_on = predict_rewards(world, clip, given, context, range(1, steps + 1))
        found[first : rows.stop, :, 0] = earned_there.numpy()
        found[first : rows.stop, :, 1] = going_on.numpy()
    sources = dataset.sources[episodes]
    return {
        "n": count,
        "sources": len(np.unique(sources)),
        "steps": steps,
        **_rewards(true[..., 0], np.abs(found[..., 0]) > smallest / 2, valid, sources, seed),
        **_ends(true[..., 1], found[..., 1], valid, sources, seed),
    }


def _choose(
    dataset: EpisodeDataset,
    split: Split,
    is_event: np.ndarray,
    ends: np.ndarray,
    context: int,
    steps: int,
    count: int,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Choose episodes and last context frames, (n,) each: a quarter before ends, a quarter before
    rewards, and the rest where neither follows; a half before the one of both where the other never
    happens."""
    rng = np.random.default_rng(seed)
    pairs: dict[str, list[tuple[int, int]]] = {"ends": [], "rewards": [], "none": []}
    for episode in dataset.episodes(split):
        first, length = int(dataset.first_rows[episode]), dataset.length(episode)
        own, own_ends = (x[first : first + length] for x in (is_event, ends))
        for name, events in (("ends", own_ends), ("rewards", own)):
            for frame in np.flatnonzero(events):
                start = int(frame) - int(rng.integers(1, steps + 1))
                if start >= context - 1:
                    pairs[name].append((episode, start))
        happens = np.flatnonzero(own | own_ends)
        for start in range(context - 1, length - 1):
            if not ((happens > start) & (happens <= start + steps)).any():
                pairs["none"].append((episode, start))
    chosen = []
    kinds = [name for name in ("ends", "rewards") if pairs[name]]
    shares = dict.fromkeys(kinds, count // 2 // max(1, len(kinds)))
    for name, share in {**shares, "none": count // 2 if kinds else count}.items():
        if pairs[name]:
            values = np.array(pairs[name])
            chosen.append(values[choose_clips(values[:, 0], share, seed)])
    if not chosen:
        raise ValueError(
            f"no {split} episode of {dataset.folder} has {context + 1} frames; leave events out of "
            f"--parts"
        )
    found = np.concatenate(chosen)
    return found[:, 0], found[:, 1]


def _rewards(
    true: np.ndarray, found: np.ndarray, valid: np.ndarray, sources: np.ndarray, seed: int
) -> dict[str, Any]:
    """true, found, valid: (n, K) bool."""
    names = ("reward_f1", "reward_f1_low", "reward_f1_high", "reward_precision", "reward_recall",
             "always_f1")  # fmt: skip
    result: dict[str, Any] = {"rewards": int((true & valid).sum())} | dict.fromkeys(names)
    if not result["rewards"]:
        return result
    hits = [(true & found & valid), (found & valid), (true & valid)]
    sums = np.stack([values.sum(1) for values in hits], axis=1).astype(float)  # (n, 3)
    hit, claimed, happened = sums.sum(0)
    low, high = confidence_interval(_f1(bootstrap_means(sums, sources, seed=seed)))
    return result | {
        "reward_f1": float(_f1(sums.sum(0)[None])[0]),
        "reward_f1_low": _finite(low),
        "reward_f1_high": _finite(high),
        "reward_precision": float(hit / claimed) if claimed else None,
        "reward_recall": float(hit / happened),
        "always_f1": float(2 * happened / (happened + valid.sum())),
    }


def _f1(means: np.ndarray) -> np.ndarray:
    """Of hits, what was predicted, and what happened, (R, 3)."""
    return 2 * means[:, 0] / (means[:, 1] + means[:, 2])


def _ends(
    true: np.ndarray, going_on: np.ndarray, valid: np.ndarray, sources: np.ndarray, seed: int
) -> dict[str, Any]:
    result: dict[str, Any] = {"ends": int((true & valid).sum())}
    names = ("continue_auc", "continue_auc_low", "continue_auc_high")

    def measure(rows: np.ndarray) -> float | None:
        kept = valid[rows]
        return area_under_roc(true[rows][kept], going_on[rows][kept])

    value = measure(np.arange(len(true)))
    if value is None:
        return result | dict.fromkeys(names)
    rng = np.random.default_rng(seed)
    groups = [np.flatnonzero(sources == source) for source in np.unique(sources)]
    drawn = []
    for _ in range(RESAMPLES if len(groups) > 1 else 0):
        picked = rng.integers(0, len(groups), len(groups))
        drawn.append(measure(np.concatenate([groups[k] for k in picked])))
    known = np.array([x for x in drawn if x is not None])
    low, high = confidence_interval(known[:, None]) if len(known) else ([np.nan], [np.nan])
    return result | dict(zip(names, (value, _finite(low[0]), _finite(high[0])), strict=True))


def _finite(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None
