"""What a world makes of actions that were not taken, against what they would have led to.

From a frame of an episode the environment itself is led through the episode's actions, and through
those of another episode; so is the world.  delta-PSNR is how much nearer its frames are to those of
their own actions than to those of the other ones.  `explained` is the share of the squared
difference between the two futures that the world predicts: 1 for all of it, 0 for none.  Both are 0
where the world does not read the actions, however well it predicts everything else.

Letters: n starts, C context frames, K steps, H horizons, S side of a frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from data.gym.branching import BranchingEnv
from data.shards.episode_dataset import EpisodeDataset
from data.shards.shard_header import Split
from evaluation.measures.intervals import bootstrap_means, confidence_interval
from evaluation.measures.metrics import MIN_MSE
from evaluation.measures.open_loop import RolloutWorld, S, imagine
from evaluation.measures.other_sources import other_sources
from evaluation.measures.sample_clips import choose_clips

BATCH_SIZE = 64
SAME, CROSSED, BETWEEN, MISSED = range(4)  # columns of squared errors


class NotRepeatable(ValueError):
    """The environment does not repeat its episodes from their seed and actions."""


@dataclass(frozen=True)
class Starts:
    """Frames to leave an episode from."""

    episodes: np.ndarray  # (n,), in order
    frames: np.ndarray  # (n,) of the last context frame


def choose_starts(
    dataset: EpisodeDataset, split: Split, context: int, steps: int, num_starts: int, seed: int
) -> Starts:
    """Choose frames with a context and `steps` steps after them, as many from each episode as can
    be; ValueError where no episode is long enough."""
    pairs = [
        (episode, frame)
        for episode in dataset.episodes(split)
        if dataset.notes[episode].get("seed") is not None
        for frame in range(context - 1, dataset.length(episode) - steps)
    ]
    if not pairs:
        raise ValueError(
            f"no {split} episode of {dataset.folder} has a seed and {context + steps} frames; "
            f"lower --horizons"
        )
    episodes, frames = np.array(pairs).T
    chosen = choose_clips(episodes, num_starts, seed)
    order = chosen[np.lexsort((frames[chosen], episodes[chosen]))]
    return Starts(episodes[order], frames[order])


def counterfactuals(
    world: RolloutWorld[S],
    dataset: EpisodeDataset,
    env: BranchingEnv,
    starts: Starts,
    horizons: Sequence[int],
    seed: int = 0,
) -> dict[str, Any]:
    """Measure a world at the horizons, for JSON: `delta_psnr` and `explained` with 95% intervals by
    a bootstrap over whole episodes, and `between_psnr`, of one true future to the other.

    NotRepeatable where the environment does not repeat the episodes.
    """
    steps, context, count = max(horizons), world.context, len(starts.episodes)
    own = [_read(dataset, "actions", e, f, f + steps) for e, f in _pairs(starts)]
    others = np.stack(own)[other_sources(starts.episodes, count // 2)]
    branches = _branches(dataset, env, starts, others)
    at = np.asarray(horizons) - 1
    errors: list[np.ndarray] = []
    for first in tqdm(range(0, count, BATCH_SIZE), "counterfactuals", leave=False):
        rows = range(first, min(first + BATCH_SIZE, count))
        pairs = [(int(starts.episodes[i]), int(starts.frames[i])) for i in rows]
        past = [_read(dataset, "frames", e, f + 1 - context, f + 1) for e, f in pairs]
        before = [_read(dataset, "actions", e, f + 1 - context, f) for e, f in pairs]
        futures = [_read(dataset, "frames", e, f + 1, f + 1 + steps)[at] for e, f in pairs]
        taken = np.stack(futures), np.stack([branches[i].frames[at] for i in rows])
        imagined = []
        for actions in (np.stack([own[i] for i in rows]), others[first : rows.stop]):
            given = np.concatenate([np.stack(before), actions], axis=1)
            images = imagine(
                world, _to_tensor(np.stack(past)), torch.from_numpy(given), context, horizons
            )
            imagined.append(images.permute(0, 1, 3, 4, 2).cpu().numpy())
        alive = np.stack([branches[i].alive[at] for i in rows])
        errors.append(_errors(imagined, taken) * alive[..., None])
        errors[-1] = np.concatenate([errors[-1], alive[..., None]], axis=-1)
    values = np.concatenate(errors)  # (n, H, 5), the last of them whether it counts
    means = bootstrap_means(values.reshape(count, -1), starts.episodes, seed=seed)
    resampled = means.reshape(-1, *values.shape[1:])
    result: dict[str, Any] = {
        "n": count, "sources": len(np.unique(starts.episodes)), "horizons": list(horizons),
        "copies": env.copies,
    }  # fmt: skip
    for name, measure in FIGURES.items():
        result[name] = _for_json(measure(values.mean(0)[None])[0])
        low, high = confidence_interval(measure(resampled))
        result |= {f"{name}_low": _for_json(low), f"{name}_high": _for_json(high)}
    return result


def _delta_psnr(means: np.ndarray) -> np.ndarray:
    return _psnr(means, SAME) - _psnr(means, CROSSED)


def _explained(means: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return 1 - means[..., MISSED] / means[..., BETWEEN]


def _between_psnr(means: np.ndarray) -> np.ndarray:
    return _psnr(means, BETWEEN)


FIGURES = {
    "delta_psnr": _delta_psnr,
    "explained": _explained,
    "between_psnr": _between_psnr,
}


def _psnr(means: np.ndarray, column: int) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return -10 * np.log10((means[..., column] / means[..., -1]).clip(min=MIN_MSE))


def _errors(imagined: Sequence[np.ndarray], true: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Mean squares of a frame, of values from 0 to 1: two futures each, (B, H, S, S, 3) uint8, ->
    (B, H, 4)."""
    (one, two), (true_one, true_two) = (
        [x.astype(np.float32) / 255 for x in pair] for pair in (imagined, true)
    )

    def square(difference: np.ndarray) -> np.ndarray:
        return np.square(difference).mean((2, 3, 4))

    same = (square(one - true_one) + square(two - true_two)) / 2
    crossed = (square(one - true_two) + square(two - true_one)) / 2
    effect, predicted = true_one - true_two, one - two
    return np.stack([same, crossed, square(effect), square(effect - predicted)], axis=-1)


def _branches(
    dataset: EpisodeDataset, env: BranchingEnv, starts: Starts, others: np.ndarray
) -> list[Any]:
    found = []
    for episode in np.unique(starts.episodes):
        rows = np.flatnonzero(starts.episodes == episode)
        steps, seed = starts.frames[rows].tolist(), dataset.notes[int(episode)]["seed"]
        actions = dataset.read(int(episode), "actions")
        made = env.branches(seed, actions, steps, [others[row] for row in rows])
        for step, branch in zip(steps, made, strict=True):
            if not np.array_equal(branch.start, dataset.read(int(episode), "frames", step)[0]):
                raise NotRepeatable(
                    f"the environment does not repeat episode {episode} of {dataset.folder} from "
                    f"its seed and actions: frame {step} is another one"
                )
            found.append(branch)
    return found


def _pairs(starts: Starts) -> list[tuple[int, int]]:
    return list(zip(starts.episodes.tolist(), starts.frames.tolist(), strict=True))


def _read(dataset: EpisodeDataset, field: str, episode: int, start: int, stop: int) -> np.ndarray:
    return dataset.read(episode, field, start, stop)


def _to_tensor(frames: np.ndarray) -> Tensor:
    """(B, T, S, S, 3) -> (B, T, 3, S, S)."""
    return torch.from_numpy(frames).permute(0, 1, 4, 2, 3)


def _for_json(values: np.ndarray) -> list[float | None]:
    return [float(v) if np.isfinite(v) else None for v in values]
