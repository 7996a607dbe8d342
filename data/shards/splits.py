"""Splits of the episodes: train, validation, test."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from data.shards.shard_header import SPLITS

HELD_OUT = 0.1
"""Fraction of the sources in validation, and the same again in test."""
LONG_ENOUGH = 24
"""Frames of an episode that every recipe's clips fit in, and an open loop of 16 steps."""


def split_sources(
    num_sources: int, seed: int, lengths: Sequence[int] | None = None, min_frames: int = 0
) -> np.ndarray:
    """Assign each source a split: (num_sources,) uint8, an index into SPLITS.

    Episodes of one source (a demonstration and its perturbed copies) stay together: a copy in
    training would leak a held-out episode. With three sources or more, each split has at least
    one; with fewer, all are for training. Of sources with `lengths`, those of `min_frames` are
    held out before shorter ones, which are no use for a validation, but one stays for training.
    """
    splits = np.zeros(num_sources, np.uint8)
    if num_sources < 3:
        return splits
    shuffled = sorted(range(num_sources), key=lambda source: _digest(seed, source))
    num_held_out = max(1, round(HELD_OUT * num_sources))
    lengths = lengths or [min_frames] * num_sources
    long = [source for source in shuffled if lengths[source] >= min_frames]
    short = [source for source in shuffled if lengths[source] < min_frames]
    for split, share in (("validation", len(long) // 2), ("test", (len(long) - 1) // 2)):
        count = min(num_held_out, max(share, 0))
        chosen = long[:count] + short[: num_held_out - count]
        splits[chosen] = SPLITS.index(split)
        long, short = long[count:], short[num_held_out - count :]
    return splits


def _digest(seed: int, source: int) -> bytes:
    return hashlib.sha256(f"{seed} {source}".encode()).digest()
