"""Actions as a .npy file, in the environment's units: (N, A), or (N,) codes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.actions import ActionSpec
from data.io.files import atomic_write


def write_actions(folder: Path, actions: Sequence[np.ndarray]) -> None:
    """Write FOLDER/actions.npy, whole or not at all."""
    buffer = io.BytesIO()
    np.save(buffer, np.array(actions))
    atomic_write(folder / "actions.npy", buffer.getbuffer())


def read_actions(path: Path, spec: ActionSpec) -> np.ndarray:
    """Read (N, A) or (N,) actions; ValueError where they are not of this action space."""
    try:
        actions = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as problem:
        raise ValueError(f"{path} must be a .npy file of numbers ({problem})") from None
    if not isinstance(actions, np.ndarray):
        raise ValueError(f"{path} holds several arrays; save the actions alone, with numpy.save")
    if actions.dtype.kind not in "iuf":
        raise ValueError(f"{path} holds {actions.dtype}, but actions are real numbers")
    if actions.ndim != 1 + len(spec.shape) or actions.shape[1:] != spec.shape or not len(actions):
        names = ", ".join(spec.names)
        shape = ", ".join(["N", *map(str, spec.shape)])
        raise ValueError(f"{path} holds {actions.shape}, but actions ({names}) are ({shape})")
    if spec.kind == "discrete":
        if not np.issubdtype(actions.dtype, np.integer):
            raise ValueError(f"{path} holds {actions.dtype}, but actions are whole numbers here")
        low, high = 0, spec.size - 1
    else:
        low, high = np.array(spec.low), np.array(spec.high)
    valid = (actions >= low) & (actions <= high)  # NaN is outside, too
    if not valid.all():
        row = int(np.argwhere(~valid)[0][0])
        raise ValueError(f"{path} has action {actions[row]} at step {row}, outside {low} to {high}")
    return actions
