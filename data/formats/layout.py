"""How arrays hold episodes: one, several stacked, or many in a row with their lengths.

Letters: N episodes, T steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data.formats.field_names import FIELDS
from data.formats.recording import Column, Recording, array_column, reading
from data.formats.size_limits import check_count

LENGTHS, OFFSETS, EPISODE_ENDS = "ep_len", "ep_offset", "episode_ends"


def recordings_of(
    arrays: Mapping[str, Any], where: str, frames_key: str, one_episode: bool
) -> Sequence[Recording]:
    """Make recordings of arrays (or what has a shape, a dtype and is sliced like one).

    Frames of five axes are (N, T, ...): N episodes. With `ep_len` or `episode_ends`, steps of many
    episodes are in a row. Otherwise steps in a row are one episode, if `one_episode`, or several
    whose ends are found later.
    """
    named = [arrays[name] for name in (frames_key, "frames") if name in arrays]
    axes = max((len(array.shape) for array in named or arrays.values()), default=0)
    if LENGTHS in arrays or EPISODE_ENDS in arrays:
        return [_in_a_row(arrays, where)]
    if axes == 5:
        return _Stacked(arrays, where)
    columns = _columns(arrays, where)
    return [Recording(where, columns, needs_ends=not one_episode)]


def _columns(arrays: Mapping[str, Any], where: str) -> dict[str, Column]:
    return {name: array_column(array, f"{where}: its {name}") for name, array in arrays.items()}


def _in_a_row(arrays: Mapping[str, Any], where: str) -> Recording:
    rest = {n: a for n, a in arrays.items() if n not in (LENGTHS, OFFSETS, EPISODE_ENDS)}
    name = LENGTHS if LENGTHS in arrays else EPISODE_ENDS
    check_count(int(arrays[name].shape[0]) if len(arrays[name].shape) == 1 else 0, where)
    with reading(f"{where}: its {name}"):
        values = np.asarray(arrays[name][:])
        offsets = np.asarray(arrays[OFFSETS][:]) if OFFSETS in arrays else None
    if values.ndim != 1 or values.dtype.kind not in "iu" or not len(values):
        raise ValueError(
            f"{where} has {name} of {values.dtype} {values.shape}; whole numbers are needed, one "
            f"an episode"
        )
    values = values.astype(np.int64)
    lengths = values if name == LENGTHS else np.diff(values, prepend=0)
    if lengths.min() < 1:
        raise ValueError(
            f"{where}: {name} says that episode {int(lengths.argmin())} has {lengths.min()} steps; "
            f"at least 1 is needed"
        )
    ends = np.cumsum(lengths)
    if offsets is not None and not np.array_equal(offsets, ends - lengths):
        raise ValueError(
            f"{where}: {OFFSETS} and {LENGTHS} disagree, for episodes are not one after the other; "
            f"get the file again"
        )
    return Recording(where, _columns(rest, where), tuple(ends.tolist()))


class _Stacked(Sequence[Recording]):
    """Recordings of (N, T, ...) arrays, made when they are asked for."""

    def __init__(self, arrays: Mapping[str, Any], where: str) -> None:
        self.where = where
        self.size = next(int(array.shape[0]) for array in arrays.values() if len(array.shape) == 5)
        self.stacked, self.other = {}, {}
        for name, array in arrays.items():
            fits = len(array.shape) > 1 and int(array.shape[0]) == self.size
            (self.stacked if fits else self.other)[name] = array
            if name in FIELDS and not fits:
                raise ValueError(
                    f"{where} has frames of {self.size} episodes, but {name} of {array.shape}; the "
                    f"first axis must be the same"
                )

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, number: Any) -> Recording:
        if not 0 <= number < self.size:
            raise IndexError(number)
        where = f"episode {number} of {self.where}"
        rows = {name: _Row(array, number) for name, array in self.stacked.items()}
        return Recording(where, _columns(rows | self.other, where))


class _Row:
    """One row of an array, sliced like an array of its own."""

    def __init__(self, array: Any, number: int) -> None:
        self.array, self.number = array, number
        self.shape, self.dtype = array.shape[1:], array.dtype

    def __getitem__(self, steps: slice) -> np.ndarray:
        return self.array[self.number, steps]
