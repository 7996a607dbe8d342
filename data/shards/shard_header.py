"""The header of a shard: what it says of itself, checked before any of it is used.

Letters: E episodes of a shard, N frames of it.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
from h5py import h5z  # type: ignore[attr-defined]
from numcodecs import blosc  # type: ignore[attr-defined]
from numcodecs.fletcher32 import Fletcher32

from data.actions import ActionSpec
from data.io.files import check_regular, parse_json
from data.shards.build_info import damaged, rebuild_command

FORMAT = 1
STEP_DTYPES = {
    "frames": "uint8",
    "rewards": "float32",
    "terminals": "bool",
    "states": "float32",
    "contacts": "float32",
    "inputs": "float32",
    "truncations": "bool",
    "lives": "int32",
}
"""Of the columns with a row for each step; that of actions depends on their kind."""
STEP_FIELDS = (
    "frames", "actions", "rewards", "terminals", "states", "contacts", "inputs", "truncations",
    "lives",
)  # fmt: skip

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
MAX_SIDE = 8192  # pixels
BLOSC, CHECKSUM = 32001, h5z.FILTER_FLETCHER32  # numbers of filters, as HDF5 registers them
FILTERS = ((), (BLOSC,), (CHECKSUM,), (BLOSC, CHECKSUM))
OVERHEAD = 20  # bytes that a stored chunk may have over its values
SMALLEST = 128 + 4  # bytes that Blosc compresses, and a checksum
blosc.use_threads = False  # threads of its own would not survive a fork


@dataclass(frozen=True)
class Column:
    """Where the K chunks of a column lie, so that HDF5 has not to look it up for every clip."""

    row_shape: tuple[int, ...]
    dtype: np.dtype
    rows: int  # of a chunk; the last one may have fewer that count
    filters: tuple[int, ...]  # in the order in which they were applied
    places: np.ndarray  # (K, 3) int64: offset in the file, bytes, a bit for each filter left out

    def read(self, file: int, number: int) -> np.ndarray:
        """Read and check a chunk of an open file: (rows, ...)."""
        offset, size, left_out = self.places[number].tolist()
        packed: Any = os.pread(file, size, offset)
        if len(packed) < size:
            raise OSError(f"a chunk ends after {len(packed)} of {size} bytes")
        # Blosc is left out where it would save nothing
        applied = [name for place, name in enumerate(self.filters) if not left_out >> place & 1]
        if CHECKSUM in applied:
            # a checksum of lost bytes is right; Blosc compresses zeros, but for a few bytes
            if applied != [*self.filters] and size >= SMALLEST and not any(packed):
                raise OSError(f"chunk {number} is empty")
            packed = Fletcher32().decode(packed)
        chunk = np.empty((self.rows, *self.row_shape), self.dtype)
        if BLOSC not in applied and len(packed) == chunk.nbytes:
            chunk.view(np.uint8).reshape(-1)[:] = np.frombuffer(packed, np.uint8)
            return chunk
        said = [int.from_bytes(packed[at : at + 4], "little") for at in (4, 12)]  # Blosc's header
        if BLOSC not in applied or said != [chunk.nbytes, len(packed)]:
            raise OSError(f"chunk {number} is not of {chunk.nbytes} bytes")
        blosc.decompress(packed, chunk)
        return chunk


@dataclass
class ShardHeader:
    """What is read of a shard without its steps."""

    path: Path
    description: dict[str, Any]
    fields: frozenset[str]
    episode_ends: np.ndarray  # (E,) int64, exclusive
    split: np.ndarray  # (E,) uint8
    source: np.ndarray  # (E,) int64
    notes: list[dict[str, Any]]  # E of them
    size: int  # bytes of the file
    columns: dict[str, Column]  # by field; empty until the file is here
    modified: int | None = None  # when, in ns; None where a hash says that the file is the same


def read_header(path: Path) -> ShardHeader:
    """Read and check the header of a shard; ValueError says what is wrong, and the way out."""
    if not path.exists():
        raise ValueError(f"{path} does not exist")
    try:
        check_regular(path)
        with h5py.File(path, "r", locking=False) as file:
            description = parse_json(str(file.attrs["description"]))
            if not isinstance(description, dict):
                raise ValueError("its description has no fields by name")
            if description.get("format") == FORMAT:
                return _read_header(path, file, description)
    except (
        OSError, KeyError, ValueError, RuntimeError, TypeError, MemoryError, OverflowError
    ) as error:  # fmt: skip
        raise damaged(path, error) from None
    raise ValueError(
        f"{path} has shard format {str(description.get('format'))[:20]}, but this version reads "
        f"{FORMAT}; use the version that wrote it, or rebuild the shards with: "
        f"{rebuild_command(path.parent)}"
    )


def _read_header(path: Path, file: h5py.File, description: dict[str, Any]) -> ShardHeader:
    actions = _check_description(description)
    stored = {name: h5_dataset(file, name) for name in STEP_FIELDS if name in file}
    if "frames" not in stored:
        raise ValueError("it has no frames")
    if ("actions" in stored) != (actions.kind != "none"):
        raise ValueError(f"it describes actions of kind {actions.kind!r}, but has {[*stored]}")
    count = stored["frames"].shape[0]
    rows = {name: column.shape[0] for name, column in stored.items()}
    if set(rows.values()) != {count}:
        raise ValueError(f"its columns differ in length: {rows}")
    _check_columns(stored, description, actions)
    columns = {name: _find_chunks(name, column) for name, column in stored.items()}

    ends = _whole_numbers(file, "episode_ends", count)
    split = _whole_numbers(file, "episode_split", count)
    source = _whole_numbers(file, "episode_source", count)
    if not (len(ends) and (np.diff(ends, prepend=0) > 0).all() and ends[-1] == count):
        raise ValueError(f"its episode ends do not rise to its {count} frames")
    if not len(ends) == len(split) == len(source):
        raise ValueError("its episodes lack a split or a source")
    if not ((split >= 0) & (split < len(SPLITS))).all():
        raise ValueError(f"its splits are not all from 0 to {len(SPLITS) - 1}")
    if (source < 0).any():
        raise ValueError("its sources are not all 0 or above")
    notes = [{} for _ in ends]
    if "episode_notes" in file:
        notes = [parse_json(note) for note in h5_dataset(file, "episode_notes")[: len(ends)]]
        if len(notes) != len(ends) or not all(isinstance(note, dict) for note in notes):
            raise ValueError("its episodes lack their notes")
    stat = path.stat()
    return ShardHeader(
        path, description, frozenset(columns), ends, split.astype(np.uint8), source, notes,
        stat.st_size, columns, stat.st_mtime_ns,
    )  # fmt: skip


def _check_description(description: dict[str, Any]) -> ActionSpec:
    size = description.get("image_size")
    if not (
        isinstance(size, list)
        and len(size) == 2
        and all(type(side) is int and 0 < side <= MAX_SIDE for side in size)
    ):
        raise ValueError(f"its description has image_size {str(size)[:40]}, not [height, width]")
    names = description.get("state_names") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("its description has state_names that are no list of names")
    if not isinstance(description.get("source", ""), str):
        raise ValueError("its description has a source that is no text")
    return ActionSpec.from_dict(description.get("actions"))


def _check_columns(
    columns: dict[str, h5py.Dataset], description: dict[str, Any], actions: ActionSpec
) -> None:
    """Check shapes and dtypes, and that what is stored is all there: HDF5 reads the rest as 0."""
    shapes: dict[str, tuple[int | None, ...]] = {
        "frames": (*description["image_size"], 3),
        "actions": actions.shape,
        "rewards": (),
        "terminals": (),
        "states": (len(description.get("state_names") or ()) or None,),
        "contacts": (),
        "inputs": (None,),
        "truncations": (),
        "lives": (),
    }
    dtypes = STEP_DTYPES | {"actions": "int64" if actions.kind == "discrete" else "float32"}
    for name, column in columns.items():
        shape = shapes[name]
        row = column.shape[1:]
        if len(row) != len(shape) or any(
            s is not None and s != r for s, r in zip(shape, row, strict=True)
        ):
            written = ", ".join("any" if side is None else str(side) for side in shape)
            raise ValueError(f"{name} are {list(row)}, described as [{written}]")
        if column.dtype != dtypes[name]:
            raise ValueError(f"{name} are {column.dtype}, not {dtypes[name]}")


def _find_chunks(name: str, column: h5py.Dataset) -> Column:
    """Ask HDF5; ValueError where the column is stored otherwise than `write_shard` does."""
    if not column.chunks:
        raise ValueError(f"{name} are not stored in chunks")
    rows, *chunk_row = column.chunks
    settings = column.id.get_create_plist()
    filters = tuple(settings.get_filter(i)[0] for i in range(settings.get_nfilters()))
    if tuple(chunk_row) != column.shape[1:] or filters not in FILTERS:
        raise ValueError(f"{name} have chunks of {column.chunks} and the filters {filters}")
    needed = max(1, -(-column.shape[0] // rows))
    if column.id.get_num_chunks() != needed:
        raise ValueError(f"{name} lack some of their {needed} chunks")
    found: list[Any] = []
    column.id.chunk_iter(found.append)
    found.sort()  # by their first row
    places = np.array([(c.byte_offset, c.size, c.filter_mask) for c in found], np.int64)
    most = rows * math.prod(chunk_row) * column.dtype.itemsize + OVERHEAD
    starts = [c.chunk_offset[0] for c in found]
    if starts != [*range(0, rows * needed, rows)] or places.min() < 0 or places.max(0)[1] > most:
        raise ValueError(f"its index of the chunks of {name} is wrong")
    return Column(column.shape[1:], column.dtype, rows, filters, places)


def _whole_numbers(file: h5py.File, name: str, most: int) -> np.ndarray:
    """Read (E,) whole numbers, at most `most` of them."""
    values = h5_dataset(file, name)
    if values.ndim != 1 or values.shape[0] > most or values.dtype.kind not in "iu":
        raise ValueError(f"its {name} are no row of at most {most} whole numbers")
    return values[:].astype(np.int64)


def h5_dataset(file: h5py.File, name: str) -> h5py.Dataset:
    """Return a dataset that the file itself holds: no link out of it, and no external storage."""
    own = isinstance(file.get(name, getlink=True), h5py.HardLink)
    item = file[name] if own else None
    if not isinstance(item, h5py.Dataset) or item.is_virtual or item.external:
        raise ValueError(f"it has no {name} of its own")
    return item
