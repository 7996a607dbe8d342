"""An episode in memory, and the checks it must pass to be written into a shard."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data.shards.shard_header import STEP_DTYPES, STEP_FIELDS


@dataclass
class Episode:
    """An episode of T frames; all arrays have T rows."""

    frames: np.ndarray  # (T, H, W, 3) uint8, RGB
    # (T, A) float32 | (T,) int64; actions[t]: frames[t] -> frames[t + 1].
    # None exactly where the action space of the description is of kind "none".
    actions: np.ndarray | None
    split: int = 0  # 0 train, 1 validation, 2 test
    source: int = 0  # id of the source; perturbed copies of one demonstration share it
    rewards: np.ndarray | None = None  # (T,) float32; rewards[t] is earned on reaching frames[t]
    terminals: np.ndarray | None = None  # (T,) bool; frames[t] is a true end, not a time limit
    states: np.ndarray | None = None  # (T, S) float32, simulator state at frames[t]
    contacts: np.ndarray | None = None  # (T,) float32, contact points at frames[t]
    inputs: np.ndarray | None = None  # (T, I) float32, keys and mouse that actions[t] encodes
    truncations: np.ndarray | None = None  # (T,) bool; frames[t] is the end of a time limit
    lives: np.ndarray | None = None  # (T,) int32, lives that are left at frames[t]
    notes: dict[str, Any] = field(default_factory=dict)  # JSON values about this episode alone

    def __len__(self) -> int:
        return len(self.frames)


def check_episode(episode: Episode, where: str, description: dict[str, Any]) -> None:
    """Raise ValueError where an episode does not fit the description of its shard."""
    height, width = description["image_size"]
    if episode.frames.dtype != np.uint8 or episode.frames.shape[1:] != (height, width, 3):
        raise ValueError(
            f"{where} has frames {episode.frames.dtype} {episode.frames.shape[1:]}, "
            f"but uint8 ({height}, {width}, 3) are needed"
        )
    if len(episode) == 0:
        raise ValueError(f"{where} has no frames")
    _check_actions(episode.actions, where, description["actions"])
    for name in STEP_FIELDS:
        values = getattr(episode, name)
        if values is None:
            continue
        if len(values) != len(episode):
            raise ValueError(f"{where} has {len(episode)} frames but {len(values)} {name}")
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            row = int(np.argwhere(~np.isfinite(values))[0][0])
            raise ValueError(f"{where} has NaN or infinity in {name} at step {row}")


def _check_actions(actions: np.ndarray | None, where: str, spec: dict[str, Any]) -> None:
    if (actions is None) != (spec["kind"] == "none"):
        have = "no actions" if actions is None else f"actions of {actions.shape[1:]}"
        raise ValueError(
            f"{where} has {have}, but its shard describes actions of kind {spec['kind']!r}; "
            f"'none' is for episodes without actions"
        )
    if actions is None:
        return
    discrete = spec["kind"] == "discrete"
    shape = () if discrete else (len(spec["names"]),)
    if actions.shape[1:] != shape:
        raise ValueError(f"{where} has actions of {actions.shape[1:]}, not {shape}")
    if np.issubdtype(actions.dtype, np.integer) != discrete:
        expected = "whole numbers" if discrete else "floats"
        raise ValueError(f"{where} has actions of {actions.dtype}, but needs {expected}")


def concat_column(episodes: list[Episode], name: str, where: str) -> np.ndarray | None:
    """Join a field of several episodes: (N, ...); None where they do not have it."""
    parts = [getattr(e, name) for e in episodes]
    if all(part is None for part in parts):
        return None
    if any(part is None for part in parts):
        raise ValueError(f"{where}: some episodes have {name} and others do not")
    column = np.concatenate(parts)
    if name == "actions":
        return column.astype(np.int64 if np.issubdtype(column.dtype, np.integer) else np.float32)
    return column.astype(STEP_DTYPES[name], copy=False)
