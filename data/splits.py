"""Which recordings are for training, which for validation and which for the test."""

from __future__ import annotations

import hashlib
from typing import Literal

import numpy as np

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
HELD_OUT = 0.1
"""Share of the sources in validation, and again in the test."""


def split_sources(num_sources: int, seed: int) -> np.ndarray:
    """Give each of `count` sources a split: (count,) uint8, an index into SPLITS.

    Recordings that stem from one source (a demonstration and its perturbed replays) stay
    together: siblings in training would give a held-out episode away. Three sources or more
    leave at least one in each split; fewer are all for training.
    """
    splits = np.zeros(num_sources, np.uint8)
    if num_sources < 3:
        return splits
    shuffled = sorted(range(num_sources), key=lambda source: _digest(seed, source))
    num_held_out = max(1, round(HELD_OUT * num_sources))
    splits[shuffled[:num_held_out]] = SPLITS.index("validation")
    splits[shuffled[num_held_out : 2 * num_held_out]] = SPLITS.index("test")
    return splits


def _digest(seed: int, source: int) -> bytes:
    return hashlib.sha256(f"{seed} {source}".encode()).digest()
