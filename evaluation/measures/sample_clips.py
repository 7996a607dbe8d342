"""Sample held-out clips, evenly over the episodes they are cut from."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from torch import Tensor

from data.actions import ActionSpec

MAX_CANDIDATES = 20_000  # clips to choose from, evenly spaced over all


class ClipBatch(Protocol):
    """Clips as data/clips.py reads them: B clips of T frames."""

    frames: Tensor  # (B, T, 3, H, W) uint8
    actions: Tensor  # (B, T, ...)

    @property
    def states(self) -> Tensor | None:
        """(B, T, S), of the simulator."""
        ...


class ClipSource(Protocol):
    """Clips of equal length that can be read by their index (data/clips.py)."""

    clip_length: int

    def __len__(self) -> int: ...

    def episode_of(self, index: int) -> int:
        """Give the number, within the dataset, of the episode that a clip is cut from."""
        ...

    def batch(self, indices: np.ndarray) -> ClipBatch:
        """Read the clips at `indices`, (B,) int64."""
        ...


class ActionClips(ClipSource, Protocol):
    """Clips that know their action space."""

    @property
    def actions(self) -> ActionSpec: ...


def choose_clips(episodes: np.ndarray, num_clips: int, seed: int) -> np.ndarray:
    """Pick `num_clips` clips, as many from each episode as can be, ordered by episode.

    episodes: (n,) the episode of every clip.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(episodes))
    by_episode = order[np.argsort(episodes[order], kind="stable")]
    _, starts = np.unique(episodes[by_episode], return_index=True)
    sizes = np.diff([*starts, len(episodes)])
    # 0 for the first pick of an episode, 1 for its second, ...
    pick_round = np.arange(len(episodes)) - np.repeat(starts, sizes)
    indices = by_episode[np.argsort(pick_round, kind="stable")[:num_clips]]
    return indices[np.argsort(episodes[indices], kind="stable")]


def sample_clips(clips: ClipSource, num_clips: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Pick clips evenly over episodes: their indices and their sources, (n,) each.

    Perturbed copies of one demonstration share its source: they are not independent.
    """
    candidates = np.unique(
        np.linspace(0, len(clips) - 1, min(len(clips), MAX_CANDIDATES)).astype(int)
    )
    episodes = np.array([clips.episode_of(i) for i in candidates])
    picked = choose_clips(episodes, num_clips, seed)
    dataset = getattr(clips, "dataset", None)  # clips made up for a test have none
    sources = episodes if dataset is None else dataset.sources[episodes]
    return candidates[picked], sources[picked]
