"""A run in an object store and its folder here: what is newer there is fetched before a command
begins, and what a command writes goes there while it runs and when it ends."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from data.io.files import PARTIAL, atomic_write, lock, parse_json, read_text
from data.io.messages import first_few
from data.io.object_store import ObjectStore, StoreError
from data.processes import rank_and_world_size
from data.shards.build_info import STORE_FILE, shard_index, shard_paths
from data.shards.remote_shards import HEADERS_FILE, write_headers
from data.shards.shard_header import read_header

RECORD = "record.json"
OWN = ".store"
"""Folder of what is known of the last exchange."""
CACHES = ("latents", "teacher", OWN)
"""Folders of a run that are made again where they are missing."""
EVERY = 15.0  # seconds between two looks at what has changed
SHARDS = "shards"


class Mirror:
    """One run: its place in the store, and its folder."""

    def __init__(self, address: str, folder: Path, cache_bytes: int) -> None:
        self.store, self.folder, self.cache_bytes = ObjectStore(address), folder, cache_bytes
        self.record: dict[str, tuple[str, str]] = {}
        self.whole_shards = False

    def fetch(self, whole_shards: bool) -> None:
        """Make the folder what the store has, but for shards, which are fetched as they are read;
        `whole_shards` fetches them as well.

        ValueError names files that have changed both here and there.
        """
        with lock(self.folder / OWN, waiting_for="fetches the same run"):
            self.record = _read_record(self.folder / OWN / RECORD)
            there = self.store.stamps()
            self.whole_shards = whole_shards or f"{SHARDS}/{HEADERS_FILE}" not in there
            here = {name: _stamp(self.folder / name) for name in self._names()}
            news = {
                name: stamp
                for name, stamp in there.items()
                if self._is_wanted(name) and self.record.get(name, ("", ""))[1] != stamp
            }
            both = [
                name for name in news
                if name in here and self.record.get(name, ("", ""))[0] != here[name]
            ]  # fmt: skip
            if both:
                raise ValueError(
                    f"{first_few(sorted(both))} changed both in {self.store.address} and in "
                    f"{self.folder} since they were last exchanged; delete the folder to take the "
                    f"store's, or give --run the folder to go on without the store"
                )
            for name, stamp in sorted(news.items()):
                self.store.fetch(name, self.folder / name)
                self.record[name] = (_stamp(self.folder / name), stamp)
            gone = [n for n in here if n in self.record and n not in there and not _is_shard(n)]
            for name in gone:
                if self.record.pop(name)[0] == here[name]:
                    (self.folder / name).unlink(missing_ok=True)
            self._save()
            self._describe_shards(changed=whole_shards)

    def send(self) -> None:
        """Make the store what the folder has, but for caches; shards that are only there stay."""
        with lock(self.folder / OWN, waiting_for="sends the same run"):
            self.record = _read_record(self.folder / OWN / RECORD)
            names = self._names()
            for name in sorted(names, key=_last_first):
                stamp = _stamp(self.folder / name)
                if self.record.get(name, ("", ""))[0] == stamp:
                    continue
                try:
                    self.record[name] = (stamp, self.store.put(self.folder / name, name))
                except StoreError:
                    if (self.folder / name).exists():
                        raise  # else it was deleted just now
            for name in [n for n in self.record if n not in names and self._is_gone(n)]:
                self.store.remove(name)
                del self.record[name]
            self._save()

    def finish_shards(self) -> None:
        """After preprocessing: write the headers of all shards, where all are here."""
        folder = self.folder / SHARDS
        with suppress(ValueError):  # some are of another process, or left to be made
            write_headers(folder, [read_header(path) for path in shard_paths(folder)])

    def _describe_shards(self, changed: bool) -> None:
        """Let a dataset fetch what is not here; where shards are to change, all are here."""
        folder = self.folder / SHARDS
        if changed:
            for name in (HEADERS_FILE, STORE_FILE):
                (folder / name).unlink(missing_ok=True)
        elif (folder / HEADERS_FILE).exists():
            said = {"address": f"{self.store.address}/{SHARDS}", "cache_bytes": self.cache_bytes}
            atomic_write(folder / STORE_FILE, json.dumps(said).encode())

    def _is_wanted(self, name: str) -> bool:
        if _is_shard(name):
            return self.whole_shards and not (self.folder / name).exists()
        return Path(name).parts[0] not in CACHES

    def _is_gone(self, name: str) -> bool:
        """Whether a file that is not here was deleted: most shards are just not fetched yet."""
        return self.whole_shards or not _is_shard(name)

    def _names(self) -> list[str]:
        """Files of the folder that belong in the store."""
        found = []
        for path in self.folder.rglob("*"):
            name = path.relative_to(self.folder)
            is_kept = name.parts[0] not in CACHES and not any(p.startswith(".") for p in name.parts)
            if (
                is_kept
                and path.is_file()
                and path.name != STORE_FILE
                and not PARTIAL.fullmatch(path.name)
            ):
                found.append(str(name))
        return found

    def _save(self) -> None:
        (self.folder / OWN).mkdir(parents=True, exist_ok=True)
        atomic_write(self.folder / OWN / RECORD, json.dumps(self.record).encode())


@contextmanager
def sent(mirror: Mirror, makes_shards: bool) -> Iterator[None]:
    """Send what a command writes, now and then and in the end, however it ends.

    While it runs a store that cannot be reached is said once, and tried again; in the end it is a
    StoreError.  Of several processes the first one sends, and those that make shards all do.
    """
    if rank_and_world_size()[0] and not makes_shards:
        yield
        return
    stop = threading.Event()
    thread = threading.Thread(target=_send_often, args=(mirror, stop), daemon=True)
    thread.start()
    try:
        yield
    except BaseException:
        _end(thread, stop)
        try:
            mirror.send()
        except StoreError as problem:  # the command's own error comes last
            print(f"store: {_kept(problem, mirror)}", file=sys.stderr, flush=True)
        raise
    _end(thread, stop)
    if makes_shards:
        mirror.finish_shards()
    try:
        mirror.send()
    except StoreError as problem:
        raise StoreError(_kept(problem, mirror)) from None


def _send_often(mirror: Mirror, stop: threading.Event) -> None:
    told = False
    while not stop.wait(EVERY):
        try:
            mirror.send()
            told = False
        except (StoreError, OSError) as problem:
            if not told:
                print(f"store: {problem}; trying again", file=sys.stderr, flush=True)
            told = True


def _end(thread: threading.Thread, stop: threading.Event) -> None:
    stop.set()
    thread.join()


def _kept(problem: StoreError, mirror: Mirror) -> str:
    return f"{problem}; until then all is in {mirror.folder}"


def _is_shard(name: str) -> bool:
    path = Path(name)
    return path.parts[0] == SHARDS and path.suffix == ".h5" and shard_index(path) is not None


def _last_first(name: str) -> tuple[bool, str]:
    """Headers name shards, so they go last."""
    return name.endswith(HEADERS_FILE), name


def _stamp(path: Path) -> str:
    try:
        found = path.stat()
    except FileNotFoundError:
        return ""
    return f"{found.st_size} {found.st_mtime_ns}"


def _read_record(path: Path) -> dict[str, tuple[str, str]]:
    try:
        return {str(k): (str(v[0]), str(v[1])) for k, v in parse_json(read_text(path)).items()}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, TypeError, AttributeError, IndexError):
        return {}  # all is compared anew
