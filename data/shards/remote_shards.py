"""Shards of which only some are here: the others are fetched from an object store as they are read.

FOLDER/store.json says where they are and how much of the disk they may take; FOLDER/headers.json
holds the headers of all.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np

from data.io.digests import file_digest
from data.io.files import QUIETLY, atomic_write, lock, parse_json, read_text
from data.io.object_store import ObjectStore
from data.shards.build_info import STORE_FILE
from data.shards.shard_header import ShardHeader, read_header

HEADERS_FILE = "headers.json"
GIB = 2**30
CACHE = "DREAMSTAGE_SHARD_CACHE_GIB"
"""The variable that bounds what shards take, in the environment."""
CACHE_LOCK = ".cache"


def write_headers(folder: Path, headers: Sequence[ShardHeader]) -> None:
    """Write headers.json: what a dataset reads of shards that are not here."""
    rows = [
        {
            "name": header.path.name, "size": header.size, "description": header.description,
            "fields": sorted(header.fields), "episode_ends": header.episode_ends.tolist(),
            "split": header.split.tolist(), "source": header.source.tolist(),
            "notes": header.notes, "sha256": file_digest(header.path),
        }
        for header in headers
    ]  # fmt: skip
    atomic_write(folder / HEADERS_FILE, json.dumps(rows).encode())


class RemoteShards:
    """The shards of a folder, fetched where they are not there.

    cache_bytes: what all may take on the disk; those that were not read for longest are deleted
    for others.  The one that is read is always there.
    """

    most_open = 4
    """Files of a process: one that is open takes room after it was deleted."""

    def __init__(self, folder: Path, address: str, cache_bytes: int) -> None:
        self.folder, self.address, self.cache_bytes = folder, address, cache_bytes
        self._store: ObjectStore | None = None
        self._hashes: dict[str, str] = {}

    @staticmethod
    def of(folder: Path) -> RemoteShards:
        """Those that FOLDER/store.json describes; ValueError where it is damaged."""
        try:
            found = parse_json(read_text(folder / STORE_FILE))
            return RemoteShards(folder, str(found["address"]), int(found["cache_bytes"]))
        except (OSError, ValueError, TypeError, KeyError) as problem:
            raise ValueError(
                f"{folder / STORE_FILE} is damaged ({problem}); delete it, and give --run the "
                f"address again"
            ) from None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_store": None}

    def headers(self) -> list[ShardHeader]:
        """The headers of all; ValueError where headers.json is missing or damaged."""
        path = self.folder / HEADERS_FILE
        try:
            rows = parse_json(read_text(path))
            headers = [_header(self.folder, row) for row in rows]
            self._hashes = {
                header.path.name: str(row["sha256"])
                for header, row in zip(headers, rows, strict=True)
            }
        except (OSError, ValueError, TypeError, KeyError) as problem:
            raise ValueError(
                f"{path} cannot be read ({problem}); delete it, and give --run the address of the "
                f"run again, which fetches it"
            ) from None
        largest = max((header.size for header in headers), default=0)
        if largest > self.cache_bytes:
            print(
                f"warning: shards of {self.address} have up to {largest} bytes, and all together "
                f"may take {self.cache_bytes} here; give {CACHE} a larger number",
                file=sys.stderr,
            )
        return headers

    def open(self, header: ShardHeader) -> FileIO:
        """Open the file of a shard, which is fetched where it is not here; its header has its
        columns then.

        StoreError where the store has another one by now.
        """
        path = header.path
        with lock(self.folder / CACHE_LOCK, waiting_for=QUIETLY):
            if not path.exists():
                self._make_room(header.size)
                self._store = self._store or ObjectStore(self.address)
                self._store.fetch(path.name, path, self._hashes[path.name])
            os.utime(path)  # read now
            header.columns = header.columns or read_header(path).columns
            # stays readable when others make room
            return FileIO(path)

    def _make_room(self, needed: int) -> None:
        held = [(p.stat().st_mtime_ns, p.stat().st_size, p) for p in self.folder.glob("shard-*.h5")]
        taken = sum(size for _, size, _ in held)
        for _, size, path in sorted(held):
            if taken + needed <= self.cache_bytes:
                return
            path.unlink(missing_ok=True)
            taken -= size


def _header(folder: Path, row: dict[str, Any]) -> ShardHeader:
    return ShardHeader(
        path=folder / Path(row["name"]).name,
        description=row["description"],
        fields=frozenset(row["fields"]),
        episode_ends=np.array(row["episode_ends"], np.int64),
        split=np.array(row["split"], np.uint8),
        source=np.array(row["source"], np.int64),
        notes=row["notes"],
        size=int(row["size"]),
        columns={},
    )
