"""Shards: self-describing HDF5 files of whole episodes.

A folder of shards is read as one list of episodes. Letters: E episodes of a shard.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shlex
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
from h5py import h5s, h5t

from data.actions import ActionSpec
from data.episodes import STEP_FIELDS, Episode, check_episode, concat_column
from data.files import atomic_write
from data.splits import SPLITS, Split

FORMAT = 1
FRAMES_PER_CHUNK = 16  # a clip of 16 frames touches two chunks at most
BUILD_FILE = "build.json"
SKIPPED = ".skipped"  # suffix of a skipped shard's file, which holds the reason
OPEN_FILES = 256


def shard_name(index: int) -> str:
    return f"shard-{index:05d}.h5"


def write_shard(path: Path, episodes: list[Episode], description: dict[str, Any]) -> None:
    """Write whole episodes with their description, atomically.

    `description` holds at least `image_size` [H, W] and `actions` (ActionSpec.as_dict()).
    """
    if not episodes:
        raise ValueError(f"{path} would hold no episode; a shard needs at least one")
    for number, episode in enumerate(episodes):
        check_episode(episode, f"episode {number} of {path}", description)
    columns = {name: concat_column(episodes, name, str(path)) for name in STEP_FIELDS}

    memory = io.BytesIO()  # a full disk then fails in a plain file write, not in the HDF5 library
    with h5py.File(memory, "w") as file:
        file.attrs["description"] = json.dumps({"format": FORMAT} | description, sort_keys=True)
        for name, column in columns.items():
            if column is not None:
                rows = min(FRAMES_PER_CHUNK if name == "frames" else 4096, len(column))
                file.create_dataset(
                    name,
                    data=column,
                    chunks=(rows, *column.shape[1:]),
                    compression=hdf5plugin.Blosc(cname="lz4", shuffle=hdf5plugin.Blosc.NOSHUFFLE),
                    fletcher32=True,  # a flipped bit is an error, not another image
                )
        file["episode_ends"] = np.cumsum([len(e) for e in episodes], dtype=np.int64)
        file["episode_split"] = np.array([e.split for e in episodes], np.uint8)
        file["episode_source"] = np.array([e.source for e in episodes], np.int64)
        if any(e.notes for e in episodes):
            file["episode_notes"] = [json.dumps(e.notes, sort_keys=True) for e in episodes]
    atomic_write(path, memory.getbuffer())


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


class EpisodeDataset:
    """All episodes of a folder of shards, and all frames as rows 0 ... num_frames - 1.

    Opening reads the headers alone. Files are opened on the first read, once per process, so a
    dataset may be pickled and forked; it is not thread-safe.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.headers = [read_header(path) for path in _shard_paths(self.folder)]
        self.description = self.headers[0].description
        for header in self.headers:
            _check_same_format(self.headers[0], header)
        self.actions = ActionSpec.from_dict(self.description["actions"])
        height, width = self.description["image_size"]
        self.image_size: tuple[int, int] = (height, width)
        self.state_names: tuple[str, ...] = tuple(self.description.get("state_names") or ())

        lengths = [np.diff(header.episode_ends, prepend=0) for header in self.headers]
        self.lengths = np.concatenate(lengths)  # (episodes,) frames of each
        self.first_rows = np.cumsum(self.lengths) - self.lengths  # (episodes,) where each begins
        self.splits = np.concatenate([header.split for header in self.headers])
        self.sources = np.concatenate([header.source for header in self.headers])
        self.notes = [note for header in self.headers for note in header.notes]
        self.num_frames = int(self.lengths.sum())
        self._shard_starts = np.cumsum(
            [0] + [int(h.episode_ends[-1]) for h in self.headers]
        ).tolist()
        self._files: dict[int, tuple[h5py.File, dict[str, _Column]]] = {}
        self._process = os.getpid()

    def __len__(self) -> int:
        return len(self.lengths)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_files": {}}

    def has(self, field: str) -> bool:
        """Return whether the shards have a field, such as actions, rewards or states."""
        return field in self.headers[0].fields

    def episodes(self, split: Split) -> list[int]:
        return np.flatnonzero(self.splits == SPLITS.index(split)).tolist()

    def length(self, episode: int) -> int:
        return int(self.lengths[episode])

    def source(self, episode: int) -> int:
        return int(self.sources[episode])

    def read(self, episode: int, field: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Read steps [start, stop) of one episode; frames are (T, H, W, 3) uint8."""
        length = self.length(episode)
        stop = length if stop is None else stop
        if not 0 <= start <= stop <= length:
            raise ValueError(f"episode {episode} has {length} frames; [{start}, {stop}) is outside")
        first = int(self.first_rows[episode])
        return self.read_rows(field, first + start, first + stop)

    def read_rows(
        self, field: str, start: int, stop: int, out: np.ndarray | None = None
    ) -> np.ndarray:
        """Read rows [start, stop) of all frames, across shards, into a new array or into `out`,
        which is contiguous and has as many rows."""
        assert 0 <= start <= stop <= self.num_frames and (out is None or len(out) == stop - start)
        first = min(bisect_right(self._shard_starts, start) - 1, len(self.headers) - 1)
        last = max(first, bisect_left(self._shard_starts, stop) - 1)
        for shard in range(first, last + 1):
            begin, end = self._shard_starts[shard : shard + 2]
            low, high = max(start, begin), min(stop, end)
            try:
                column = self._column(shard, field)
                if out is None:
                    out = np.empty((stop - start, *column.row_shape), column.dtype)
                column.read(low - begin, out[low - start : high - start])
            except (OSError, RuntimeError, KeyError) as error:
                where = f"{field} {low - begin} to {high - begin} cannot be read"
                raise _damaged(self.headers[shard].path, f"{where}: {error}") from None
        assert out is not None
        return out

    @property
    def fingerprint(self) -> str:
        """Hash of all headers, in 16 hex digits: changes with any shard, reads no steps."""
        digest = hashlib.sha256()
        for header in self.headers:
            facts = [header.path.name, header.path.stat().st_size, header.description]
            digest.update(json.dumps(facts, sort_keys=True).encode())
            digest.update(
                header.episode_ends.tobytes() + header.split.tobytes() + header.source.tobytes()
            )
        return digest.hexdigest()[:16]

    def _column(self, shard: int, field: str) -> _Column:
        """Return a field of a shard, looked up once: that takes as long as reading a clip."""
        if self._process != os.getpid():  # a fork: the parent's handles are not ours
            self._files, self._process = {}, os.getpid()
        if shard not in self._files:
            while len(self._files) >= OPEN_FILES:
                self._files.pop(next(iter(self._files)))[0].close()
            file = h5py.File(self.headers[shard].path, "r", locking=False)
            self._files[shard] = (file, {})
        file, known = self._files[shard]
        if field not in known:
            header = self.headers[shard]
            if field not in header.fields:
                has = ", ".join(sorted(header.fields))
                raise ValueError(f"{header.path} has no {field}; it holds {has}")
            known[field] = _Column(h5_dataset(file, field))
        return known[field]


class _Column:
    """A field of a shard. Keeps the HDF5 types and spaces that h5py creates for every slice, which
    would take up to a third of the time to read a clip."""

    def __init__(self, h5: h5py.Dataset) -> None:
        self.row_shape, self.dtype = h5.shape[1:], h5.dtype
        self._id, self._space = h5.id, h5.id.get_space()
        self._h5_type = h5t.py_create(h5.dtype)

    def read(self, start: int, out: np.ndarray) -> None:
        """Read `len(out)` rows from `start` on."""
        # HDF5 converts nothing here: with another dtype it would write past the array
        assert out.dtype == self.dtype and out.shape[1:] == self.row_shape
        if len(out):
            self._space.select_hyperslab((start, *(0 for _ in self.row_shape)), out.shape)
            self._id.read(_space(out.shape), self._space, out, self._h5_type)


@lru_cache(maxsize=64)
def _space(shape: tuple[int, ...]) -> h5s.SpaceID:
    return h5s.create_simple(shape)


def h5_dataset(file: h5py.File, name: str) -> h5py.Dataset:
    item = file[name]
    assert isinstance(item, h5py.Dataset)
    return item


def read_header(path: Path) -> ShardHeader:
    """Read and check the header of a shard."""
    try:
        with h5py.File(path, "r", locking=False) as file:
            description = json.loads(str(file.attrs["description"]))
            present = frozenset(name for name in STEP_FIELDS if name in file)
            rows = {name: h5_dataset(file, name).shape[0] for name in present}
            frame_shape = list(h5_dataset(file, "frames").shape[1:])
            ends = h5_dataset(file, "episode_ends")[:]
            split, source = (
                h5_dataset(file, "episode_split")[:],
                h5_dataset(file, "episode_source")[:],
            )
            raw_notes = h5_dataset(file, "episode_notes")[:] if "episode_notes" in file else []
            notes = [json.loads(note) for note in raw_notes] or [{} for _ in ends]
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist") from None
    except (OSError, KeyError, ValueError, RuntimeError, AssertionError) as error:
        raise _damaged(path, str(error)) from None
    if description.get("format") != FORMAT:
        raise ValueError(
            f"{path} has shard format {description.get('format')}, but this version reads "
            f"{FORMAT}; rebuild the shards with: {rebuild_command(path.parent)}"
        )
    count = rows["frames"]
    if frame_shape != [*description["image_size"], 3]:
        raise _damaged(path, f"frames are {frame_shape}, described as {description['image_size']}")
    if ("actions" in present) != (description["actions"]["kind"] != "none"):
        kind = description["actions"]["kind"]
        raise _damaged(path, f"it describes actions of kind {kind!r}, but has columns {rows}")
    if set(rows.values()) != {count}:
        raise _damaged(path, f"its columns differ in length: {rows}")
    if not (len(ends) and (np.diff(ends, prepend=0) > 0).all() and ends[-1] == count):
        raise _damaged(path, f"its episode ends do not rise to its {count} frames")
    if not len(ends) == len(split) == len(source) or not (split < len(SPLITS)).all():
        raise _damaged(path, "its episodes lack a split or a source")
    return ShardHeader(path, description, present, ends, split, source, notes)


def rebuild_command(folder: Path) -> str:
    """Return the command that builds the shards of a folder, at its current location."""
    info = read_build_info(folder)
    words = shlex.split(info["command"] if info else "python preprocess.py pusht")
    for position, word in reversed(list(enumerate(words))):
        if word == "--run" or word.startswith("--run="):
            del words[position : position + (2 if word == "--run" else 1)]
    run = folder.parent if folder.name == "shards" else folder
    return shlex.join([*words, "--run", str(run)])


def shards_folder(folder: Path) -> Path:
    """Return the shards folder of a run, or `folder` itself where it is not a run."""
    subfolder = folder / "shards"
    return subfolder if subfolder.is_dir() else folder


def read_build_info(folder: Path) -> dict[str, Any] | None:
    """Read build.json; None where it does not exist, as for shards written manually."""
    path = folder / BUILD_FILE
    if not path.exists():
        return None
    types = {"description": dict, "shards": int, "command": str, "seconds": int | float}
    try:
        info = json.loads(path.read_text())
        if not isinstance(info, dict):
            raise ValueError("it holds no fields")
        wrong = [key for key, kind in types.items() if not isinstance(info.get(key), kind)]
        if wrong:
            raise ValueError(f"it lacks {', '.join(wrong)}")
    except (OSError, ValueError) as problem:
        raise ValueError(
            f"{path} is damaged ({problem}); delete it and run python preprocess.py as "
            f"before, which writes it again and keeps the shards"
        ) from None
    return info


def _damaged(path: Path, reason: str) -> ValueError:
    reason = " ".join(reason.split())
    return ValueError(
        f"{path} is damaged ({reason}); delete that one file and run again, which rebuilds "
        f"it and keeps the others: {rebuild_command(path.parent)}"
    )


def _check_same_format(first: ShardHeader, other: ShardHeader) -> None:
    if first.description == other.description and first.fields == other.fields:
        return
    keys = first.description.keys() | other.description.keys()
    differs = [k for k in sorted(keys) if first.description.get(k) != other.description.get(k)]
    raise ValueError(
        f"{first.path} and {other.path.name} are of different datasets (they differ in "
        f"{', '.join(differs) or 'their columns'}); keep each set of shards in its own folder"
    )


def _shard_paths(folder: Path) -> list[Path]:
    paths = sorted(folder.glob("shard-*.h5"))
    if not paths:
        raise ValueError(f"{folder} holds no shards; make them with: {rebuild_command(folder)}")
    info = read_build_info(folder)
    if info is None:
        return paths  # written manually: whatever is there
    expected = info["shards"] - len(list(folder.glob(f"*{SKIPPED}")))
    if len(paths) != expected:
        raise ValueError(
            f"{folder} holds {len(paths)} of {expected} shards; finish them with: "
            f"{rebuild_command(folder)}"
        )
    return paths
