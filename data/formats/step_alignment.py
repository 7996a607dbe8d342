"""Which action, reward and end belong to which frame.

All of an episode's arrays come out with T rows, one a frame. `actions[t]` leads from `frames[t]` to
`frames[t + 1]`, so the last one leads nowhere; `rewards[t]` is earned on reaching `frames[t]`, and
`terminals[t]` says that `frames[t]` is a true end. Files keep them in one of four ways:

    as many actions as frames   each array as here
    one more frame              T frames, T - 1 actions, rewards and ends (gymnasium): the last
                                action is repeated; nothing is earned on reaching the first frame
    by transition               T of each, but rewards[t] and ends[t] are of actions[t] (robomimic,
                                D4RL), whose outcome is frames[t + 1]; that of the last action is no
                                frame, so its reward and end go to the last frame that there is
    the action before           actions[t] led to frames[t] (DreamerV3): --alignment previous
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from data.formats.field_names import Names
from data.formats.recording import Column, Recording

Alignment = Literal["next", "previous"]
OF_TRANSITIONS = ("actions", "rewards", "terminals", "truncations")  # may lack a row


def rows_lacking(recording: Recording, names: Names) -> dict[str, int]:
    """Return for each field by how many rows it is shorter than the frames: 0 or 1."""
    columns = {name: recording.columns[stored] for name, stored in names.stored.items()}
    for name, column in columns.items():
        if not column.shape:
            raise ValueError(
                f"{recording.where} has {name} of one number; one value per step is needed"
            )
        if len(column) == 0:
            raise ValueError(f"{recording.where} has 0 steps; remove it, or get the file again")
    rows = len(columns["frames"])
    lacking: dict[str, int] = {}
    for name, column in columns.items():
        lacking[name] = rows - len(column)
        if lacking[name] not in ((0, 1) if name in OF_TRANSITIONS else (0,)):
            also = " or one action less" if name == "actions" else ""
            raise ValueError(
                f"{recording.where} has {rows} frames but {len(column)} {name}; one row per frame "
                f"is needed{also} (the last action leads nowhere)"
            )
    return lacking


def read_actions(
    column: Column, start: int, stop: int, lacks_row: bool, alignment: Alignment
) -> np.ndarray:
    """Read the actions of frames [start, stop), so that row t leads from frame t to the next."""
    length = stop - start
    if alignment == "previous" and length > 1:
        start += 1
    values = column.read(start, min(stop, len(column)) if lacks_row else stop)
    if len(values) < length and len(values):
        values = np.concatenate([values, values[-1:]])
    if len(values) > 1 and values.dtype.kind == "f" and np.isnan(values[-1]).any():
        values = values.copy()  # stable-worldmodel writes NaN for the action that leads nowhere
        values[-1] = values[-2]
    return values


def read_outcomes(
    column: Column, start: int, stop: int, lacks_row: bool, by_transition: bool
) -> np.ndarray:
    """Read rewards or terminals of frames [start, stop), so that row t is of reaching frame t."""
    if not (lacks_row or by_transition):
        values = flat(column.read(start, stop))
        if values.dtype.kind == "f" and np.isnan(values.flat[0]):
            values = values.copy()  # nothing was earned on reaching the first frame
            values[0] = 0
        return values
    of_actions = flat(column.read(start, min(stop, len(column))))
    values = np.zeros((stop - start, *of_actions.shape[1:]), of_actions.dtype)
    values[1:] = of_actions[: len(values) - 1]
    if by_transition and not lacks_row:
        values[-1] = of_actions[-1]
    return values


def flat(values: np.ndarray) -> np.ndarray:
    """(T, 1) -> (T,), as some keep their rewards."""
    return values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values
