"""Write your own recordings, an episode a file, as `preprocess.py arrays` reads them.

docs/how-to/your-recordings.md shows it in 20 lines. Letters: T frames, H W pixels, A numbers of an
action, S of a state.
"""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from data.io.files import atomic_write

NAME = re.compile(r"episode_(\d+)\.npz")


def write_episode(
    folder: Path | str,
    frames: ArrayLike,
    actions: ArrayLike | None = None,
    rewards: ArrayLike | None = None,
    terminals: ArrayLike | None = None,
    states: ArrayLike | None = None,
) -> Path:
    """Write one whole episode as FOLDER/episode_NNNNNN.npz, after those that are there.

    frames: (T, H, W, 3) or (T, 3, H, W) uint8, RGB.
    actions: (T - 1,) whole numbers or (T - 1, A); actions[t] leads from frames[t] to frames[t + 1].
    rewards: (T - 1,); rewards[t] follows from actions[t].
    terminals: (T - 1,) bool; actions[t] led to a true end, not to a time limit.
    states: (T, S), of each frame.

    Actions, rewards and terminals may also have T rows. The last action then leads nowhere, and
    row t of the others is of reaching frames[t]. ValueError names an array that does not fit;
    nothing is written then. One process at a time may write into a folder.
    """
    given = {
        "frames": frames,
        "actions": actions,
        "rewards": rewards,
        "terminals": terminals,
        "states": states,
    }
    arrays = {name: _numbers(name, values) for name, values in given.items() if values is not None}
    _check(arrays)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    numbers = [int(m[1]) for path in folder.iterdir() if (m := NAME.fullmatch(path.name))]
    path = folder / f"episode_{max(numbers, default=-1) + 1:06d}.npz"
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)  # pyright: ignore[reportArgumentType]
    atomic_write(path, content.getbuffer())
    return path


def _numbers(name: str, values: ArrayLike) -> np.ndarray:
    try:
        array = np.asarray(values)
    except ValueError:  # rows of several lengths
        array = np.empty(0, object)
    if array.dtype.kind not in "biuf" or not array.ndim or not len(array):
        raise ValueError(f"{name} must be an array of numbers, one row a step")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError(f"{name} hold NaN or infinity at row {_bad_row(array)}")
    return array


def _bad_row(array: np.ndarray) -> int:
    return int(np.argwhere(~np.isfinite(array))[0][0])


def _check(arrays: dict[str, np.ndarray]) -> None:
    """Raise ValueError for an array that does not fit the frames."""
    frames = arrays["frames"]
    if frames.dtype != np.uint8 or frames.ndim != 4 or 3 not in (frames.shape[1], frames.shape[3]):
        raise ValueError(
            f"frames are {frames.dtype} {frames.shape}, but uint8 (T, H, W, 3) or (T, 3, H, W) are "
            f"needed, from 0 to 255"
        )
    for name, values in arrays.items():
        rows = (len(frames),) if name in ("frames", "states") else (len(frames) - 1, len(frames))
        if len(values) not in rows:
            raise ValueError(
                f"there are {len(frames)} frames, but {len(values)} {name}; "
                f"{' or '.join(map(str, rows))} are needed"
            )
    actions = arrays.get("actions")
    if actions is not None and not (
        actions.ndim == 2 or (actions.ndim == 1 and actions.dtype.kind in "biu")
    ):
        raise ValueError(
            f"actions are {actions.dtype} {actions.shape}, but whole numbers (T - 1,), or "
            f"(T - 1, A), are needed"
        )
    for name in ("rewards", "terminals"):
        if name in arrays and arrays[name].ndim != 1:
            raise ValueError(f"{name} are {arrays[name].shape}, but one number a step is needed")
    if "states" in arrays and arrays["states"].ndim != 2:
        raise ValueError(f"states are {arrays['states'].shape}, but (T, S) is needed")
