"""What a file holds before it is understood: arrays by their stored names, read in parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data.io.messages import one_line

WAY_OUT = "get it again, or move it away"  # of a damaged file


@dataclass(frozen=True)
class Column:
    """An array of a recording, with a row a step, that is read in parts."""

    shape: tuple[int, ...]  # (T, ...)
    dtype: np.dtype[Any]
    read: Callable[[int, int], np.ndarray]  # rows [start, stop)

    def __len__(self) -> int:
        return self.shape[0]


@dataclass(frozen=True)
class Recording:
    """Steps in a row as one file, folder or group holds them: an episode, or several."""

    where: str  # for messages, such as "episode 3 of a.h5"
    columns: Mapping[str, Column]
    ends: tuple[int, ...] = ()  # where its episodes end, exclusive, in frames; empty if unsaid
    needs_ends: bool = False  # it surely holds several episodes, so their ends must be found


@dataclass(frozen=True)
class RecordingSet:
    """All recordings of a path, and what the format says of them."""

    recordings: Sequence[Recording]
    files: tuple[Path, ...]  # all that is read, for the identity of the data
    names: Mapping[str, str] = field(default_factory=dict)  # stored name -> field, where known
    # rewards[t] and the ends of row t follow from actions[t], though there are as many as frames
    by_transition: bool = False
    remarks: tuple[str, ...] = ()


def array_column(array: Any, where: str) -> Column:
    """Wrap an array, or what is sliced like one (h5py, a memory map)."""

    def read(start: int, stop: int) -> np.ndarray:
        with reading(where):
            return np.asarray(array[start:stop])

    return Column(tuple(map(int, array.shape)), np.dtype(array.dtype), read)


@contextmanager
def reading(where: str) -> Iterator[None]:
    """Turn whatever a library raises about a file into one line.

    Damaged files make libraries raise nearly anything (RuntimeError, KeyError, struct.error,
    tokenize errors, MemoryError at an absurd size), so all of it counts. Only library calls belong
    inside.
    """
    try:
        yield
    except Exception as problem:
        if any(words in str(problem) for words in ("allow_pickle", "Python objects")):
            raise ValueError(
                f"{where} cannot be read: it holds Python objects, such as a list of frames of "
                f"several sizes, which are never loaded; save arrays of numbers (np.stack)"
            ) from None
        raise ValueError(f"{where} cannot be read ({one_line(problem)}); {WAY_OUT}") from None
