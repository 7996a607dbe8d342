"""Digests of recorded episodes, by which one is known again in another folder of shards."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np

from data.shards import EpisodeDataset


def episode_digests(dataset: EpisodeDataset, episodes: Iterable[int]) -> np.ndarray:
    """Hash the length, the actions and the first frame of each episode: (E,) int64.

    Without actions the last frame counts too.  Neither the split nor the shard nor the number of an
    episode changes its digest; recordings of equal actions from an equal frame have the same.
    """
    has_actions = dataset.has("actions")
    actions = dataset.read_rows("actions", 0, dataset.num_frames) if has_actions else None
    digests = []
    for episode in episodes:
        first, length = int(dataset.first_rows[episode]), dataset.length(episode)
        last = first + length - 1
        hashed = hashlib.sha256(str(length).encode())
        hashed.update(dataset.read_rows("frames", first, first + 1).tobytes())
        if actions is None:
            hashed.update(dataset.read_rows("frames", last, last + 1).tobytes())
        else:
            hashed.update(actions[first:last].tobytes())  # the last action leads nowhere
        digests.append(int.from_bytes(hashed.digest()[:8], "little", signed=True))
    return np.array(digests, np.int64)
