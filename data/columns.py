"""The columns of a shard, and the splits of its episodes."""

from __future__ import annotations

from typing import Literal

STEP_DTYPES = {
    "frames": "uint8",
    "rewards": "float32",
    "terminals": "bool",
    "states": "float32",
    "contacts": "float32",
    "inputs": "float32",
}
"""Of the columns with a row for each step; that of actions depends on their kind."""
STEP_FIELDS = ("frames", "actions", "rewards", "terminals", "states", "contacts", "inputs")

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
