"""Which recordings are for training, which for validation and which for the test."""

from __future__ import annotations

import hashlib
from typing import Literal

import numpy as np

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
HELD_OUT = 0.1
"""Share of the sources in validation, and again in the test."""


def split_sources(count: int, seed: int) -> np.ndarray:
    """Give each of `count` sources a split: (count,) uint8, an index into SPLITS.

    Recordings that stem from one source (a demonstration and its perturbed replays) stay
    together: siblings in training would give a held-out episode away. Three sources or more
    leave at least one in each split; fewer are all for training.
    """
    splits = np.zeros(count, np.uint8)
    if count < 3:
        return splits
    drawn = sorted(range(count), key=lambda source: _digest(seed, source))
    held_out = max(1, round(HELD_OUT * count))
    splits[drawn[:held_out]] = SPLITS.index("validation")
    splits[drawn[held_out : 2 * held_out]] = SPLITS.index("test")
    return splits


def _digest(seed: int, source: int) -> bytes:
    return hashlib.sha256(f"{seed} {source}".encode()).digest()
