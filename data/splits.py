"""Splits of the episodes: train, validation, test."""

from __future__ import annotations

import hashlib
from typing import Literal

import numpy as np

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
HELD_OUT = 0.1
"""Fraction of the sources in validation, and the same again in test."""


def split_sources(num_sources: int, seed: int) -> np.ndarray:
    """Assign each source a split: (num_sources,) uint8, an index into SPLITS.

    Episodes of one source (a demonstration and its perturbed copies) stay together: a copy in
    training would leak a held-out episode. With three sources or more, each split has at least
    one; with fewer, all are for training.
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
