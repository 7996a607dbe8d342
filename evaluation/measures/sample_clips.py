"""Choose windows of held-out clips, evenly over the episodes they are cut from."""

from __future__ import annotations

from typing import Any

import numpy as np

MAX_CANDIDATES = 20_000  # windows to choose from, at most: evenly over all that there are


def choose_clips(episodes: np.ndarray, num_clips: int, seed: int) -> np.ndarray:
    """Pick `count` windows, as many from each episode as can be, ordered by episode.

    episodes: (n,) the episode of every window.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(episodes))
    by_episode = order[np.argsort(episodes[order], kind="stable")]
    _, starts = np.unique(episodes[by_episode], return_index=True)
    sizes = np.diff([*starts, len(episodes)])
    pick_round = np.arange(len(episodes)) - np.repeat(
        starts, sizes
    )  # 0 for an episode's first pick
    indices = by_episode[np.argsort(pick_round, kind="stable")[:num_clips]]
    return indices[np.argsort(episodes[indices], kind="stable")]


def sample_clips(clips: Any, num_clips: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Pick windows of clips evenly over episodes: their indices and their sources, (n,) each.

    Perturbed replays of one demonstration have one source: they are not independent.
    """
    candidates = np.unique(
        np.linspace(0, len(clips) - 1, min(len(clips), MAX_CANDIDATES)).astype(int)
    )
    episodes = np.array([clips.episode_of(i) for i in candidates])
    picked = choose_clips(episodes, num_clips, seed)
    dataset = getattr(clips, "recordings", None)
    sources = episodes if dataset is None else dataset.sources[episodes]
    return candidates[picked], sources[picked]
