"""Shards: self-describing HDF5 files of whole episodes.

A folder of shards is read as one list of episodes. Letters: E episodes of a shard.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np

from data.actions import ActionSpec
from data.shards.build_info import STORE_FILE, damaged, shard_paths
from data.shards.shard_header import SPLITS, Column, ShardHeader, Split, read_header

OPEN_FILES = 64  # of a dataset in a process
CACHE_BYTES = 2**22  # of decompressed chunks: with more, what is decompressed goes to slow memory


class EpisodeDataset:
    """All episodes of a folder of shards, and all frames as rows 0 ... num_frames - 1.

    Opening reads the headers alone. Files are opened as they are read. A dataset may be pickled and
    forked; it is not thread-safe.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        open_file, most_open = _open_shard, OPEN_FILES
        if (self.folder / STORE_FILE).exists():
            from data.shards.remote_shards import RemoteShards

            remote = RemoteShards.of(self.folder)
            self.headers = remote.headers()
            open_file, most_open = remote.open, remote.most_open
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
        self._chunks = ChunkReader(self.headers, open_file, most_open)

    def __len__(self) -> int:
        return len(self.lengths)

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
                if out is None:
                    column = self._chunks.column(shard, field)
                    out = np.empty((stop - start, *column.row_shape), column.dtype)
                self._chunks.read(shard, field, low - begin, out[low - start : high - start])
            except (OSError, RuntimeError, KeyError) as error:
                where = f"{field} {low - begin} to {high - begin} cannot be read: "
                raise damaged(self.headers[shard].path, error, where) from None
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


class ChunkReader:
    """Reads rows chunk by chunk, without HDF5: many shards as fast as few, in the same memory.

    open_file: opens a shard, whose header has its columns then; `most_open` are open at once.
    """

    def __init__(
        self, headers: list[ShardHeader], open_file: Callable[[ShardHeader], FileIO], most_open: int
    ) -> None:
        self._headers, self._open_file, self._most_open = headers, open_file, most_open
        self._files: dict[int, FileIO] = {}  # by shard; the last used is last, as below
        self._kept: dict[tuple[int, str, int], np.ndarray] = {}  # by shard, field and number
        self._kept_bytes = 0

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_files": {}, "_kept": {}, "_kept_bytes": 0}

    def __del__(self) -> None:
        for file in self._files.values():
            file.close()

    def column(self, shard: int, field: str) -> Column:
        """Return where a field of a shard lies; ValueError where it has no such field."""
        header = self._headers[shard]
        if field not in header.fields:
            has = ", ".join(sorted(header.fields))
            raise ValueError(f"{header.path} has no {field}; it holds {has}")
        if not header.columns:
            self._file(shard)
        return header.columns[field]

    def read(self, shard: int, field: str, start: int, out: np.ndarray) -> None:
        """Read `len(out)` rows of a shard from `start` on."""
        column, done = self.column(shard, field), 0
        assert out.dtype == column.dtype and out.shape[1:] == column.row_shape
        while done < len(out):
            number, skipped = divmod(start + done, column.rows)
            part = self._chunk(shard, field, number)[skipped : skipped + len(out) - done]
            out[done : done + len(part)] = part
            done += len(part)

    def _chunk(self, shard: int, field: str, number: int) -> np.ndarray:
        key = shard, field, number
        chunk = self._kept.pop(key, None)
        if chunk is None:
            chunk = self.column(shard, field).read(self._file(shard), number)
            self._kept_bytes += chunk.nbytes
            while self._kept_bytes > CACHE_BYTES and self._kept:
                self._kept_bytes -= self._kept.pop(next(iter(self._kept))).nbytes
        self._kept[key] = chunk
        return chunk

    def _file(self, shard: int) -> int:
        file = self._files.pop(shard, None)
        if file is None:
            while len(self._files) >= self._most_open:
                self._close_oldest()
            file = self._open(shard)
            stat, before = os.fstat(file.fileno()), self._headers[shard]
            if stat.st_size != before.size:
                raise OSError(f"it has {stat.st_size} bytes, and had {before.size} before")
            if before.modified not in (None, stat.st_mtime_ns):
                raise ValueError(
                    f"{before.path} was written again while it was in use; run the same command "
                    f"again, which reads its shards anew"
                )
        self._files[shard] = file
        return file.fileno()

    def _open(self, shard: int) -> FileIO:
        while True:
            try:
                return self._open_file(self._headers[shard])
            except OSError as problem:
                if problem.errno != errno.EMFILE or not self._files:
                    raise
            self._close_oldest()  # this process may open fewer

    def _close_oldest(self) -> None:
        self._files.pop(next(iter(self._files))).close()


def _open_shard(header: ShardHeader) -> FileIO:
    return FileIO(header.path)


def _check_same_format(first: ShardHeader, other: ShardHeader) -> None:
    if first.description == other.description and first.fields == other.fields:
        return
    keys = first.description.keys() | other.description.keys()
    differs = [k for k in sorted(keys) if first.description.get(k) != other.description.get(k)]
    raise ValueError(
        f"{first.path} and {other.path.name} are of different datasets (they differ in "
        f"{', '.join(differs) or 'their columns'}); keep each set of shards in its own folder"
    )
