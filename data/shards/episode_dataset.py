"""Shards: self-describing HDF5 files of whole episodes.

A folder of shards is read as one list of episodes. Letters: E episodes of a shard.
"""

from __future__ import annotations

import hashlib
import json
import os
from bisect import bisect_left, bisect_right
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
from h5py import h5s, h5t

from data.actions import ActionSpec
from data.shards.build_info import STORE_FILE, damaged, shard_paths
from data.shards.shard_header import SPLITS, ShardHeader, Split, h5_dataset, read_header

if TYPE_CHECKING:
    from data.shards.remote_shards import RemoteShards

OPEN_FILES = 256


class EpisodeDataset:
    """All episodes of a folder of shards, and all frames as rows 0 ... num_frames - 1.

    Opening reads the headers alone. Files are opened on the first read, once per process, so a
    dataset may be pickled and forked; it is not thread-safe.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self._remote: RemoteShards | None = None
        if (self.folder / STORE_FILE).exists():
            from data.shards.remote_shards import RemoteShards

            self._remote = RemoteShards.of(self.folder)
            self.headers = self._remote.headers()
        else:
            self.headers = [read_header(path) for path in shard_paths(self.folder)]
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

    def all_zero(self, field: str) -> bool:
        """Whether it has the field, and every value is 0: rewards of a recorder that knows no task,
        which count as none."""
        return self.has(field) and not self.read_rows(field, 0, self.num_frames).any()

    def episodes(self, split: Split) -> list[int]:  # numbers of the episodes of a split
        return np.flatnonzero(self.splits == SPLITS.index(split)).tolist()

    def length(self, episode: int) -> int:  # frames of an episode
        return int(self.lengths[episode])

    def source(self, episode: int) -> int:  # id of the source of an episode
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
                raise damaged(self.headers[shard].path, f"{where}: {error}") from None
        assert out is not None
        return out

    @property
    def fingerprint(self) -> str:
        """Hash of all headers, in 16 hex digits: changes with any shard, reads no steps."""
        digest = hashlib.sha256()
        for header in self.headers:
            facts = [header.path.name, header.size, header.description]
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
            remote, header = self._remote, self.headers[shard]
            while len(self._files) >= (remote.most_open if remote else OPEN_FILES):
                self._files.pop(next(iter(self._files)))[0].close()
            file = remote.open(header) if remote else h5py.File(header.path, "r", locking=False)
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


def _check_same_format(first: ShardHeader, other: ShardHeader) -> None:
    if first.description == other.description and first.fields == other.fields:
        return
    keys = first.description.keys() | other.description.keys()
    differs = [k for k in sorted(keys) if first.description.get(k) != other.description.get(k)]
    raise ValueError(
        f"{first.path} and {other.path.name} are of different datasets (they differ in "
        f"{', '.join(differs) or 'their columns'}); keep each set of shards in its own folder"
    )
