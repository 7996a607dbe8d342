"""A run in an object store and its folder here: what is newer there is fetched before a command
begins, and what a command writes goes there while it runs and when it ends."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tqdm import tqdm

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
HEADERS = f"{SHARDS}/{HEADERS_FILE}"


class Mirror:
    """One run: its place in the store, and its folder."""

    def __init__(self, address: str, folder: Path, cache_bytes: int) -> None:
        self.store, self.folder, self.cache_bytes = ObjectStore(address), folder, cache_bytes
        self.record: dict[str, tuple[str, str]] = {}
        self.whole_shards = False

    def fetch(self, whole_shards: bool) -> None:
        """Fetch what the store has and this folder lacks, or has of an earlier time; of shards
        those that `whole_shards` asks for, as the others are fetched when they are read.

        Nothing is deleted but copies of shards that were made anew.  ValueError names files that
        have changed both here and there.
        """
        with lock(self.folder / OWN, waiting_for="fetches the same run"):
            self.record = _read_record(self.folder / OWN / RECORD)
            there = self.store.stamps()
            self.whole_shards = whole_shards or HEADERS not in there
            here = {name: _stamp(self.folder / name) for name in self._names()}
            if HEADERS not in there or self._known(HEADERS)[1] != there[HEADERS]:
                self._forget_shards(there, here)
            news = {
                name: stamp
                for name, stamp in there.items()
                if self._is_wanted(name) and (name not in here or self._known(name)[1] != stamp)
            }
            both = [
                name
                for name, stamp in news.items()
                if name in here
                and self._known(name)[0] != here[name]
                and not self._is_same(name, stamp)
            ]
            if both:
                raise ValueError(
                    f"{first_few(sorted(both))} changed both in {self.store.address} and in "
                    f"{self.folder} since they were last exchanged; delete the folder to take the "
                    f"store's, or give --run the folder to go on without the store"
                )
            try:
                for name, stamp in tqdm(sorted(news.items()), "fetch", unit=" files", delay=2):
                    self.store.fetch(name, self.folder / name)
                    self.record[name] = (_stamp(self.folder / name), stamp)
            finally:
                self._save()
            self._describe_shards(changed=whole_shards)

    def _forget_shards(self, there: dict[str, str], here: dict[str, str]) -> None:
        """Delete what is no longer so: copies of shards, and their headers."""
        for name in [name for name in here if _is_shard(name) or name == HEADERS]:
            is_own = self._known(name) == (here[name], there.get(name)) or (
                name not in there and name not in self.record  # made here, and not sent
            )
            if not is_own and (name != HEADERS or name not in there):
                (self.folder / name).unlink(missing_ok=True)
                del here[name]
        (self.folder / SHARDS / STORE_FILE).unlink(missing_ok=True)

    def _is_same(self, name: str, stamp: str) -> bool:
        """Whether file and object are equal, though a command was killed before it noted so."""
        path = self.folder / name
        if stamp.split()[0] != str(path.stat().st_size):
            return False
        return self.store.read(name) == path.read_bytes()

    def _known(self, name: str) -> tuple[str, str]:
        """The stamps of file and object when they were last the same."""
        return self.record.get(name, ("", ""))

    def send(self, progress: bool = False) -> None:
        """Make the store what the folder has, but for caches; shards that are only there stay."""
        with lock(self.folder / OWN, waiting_for="sends the same run"):
            self.record = _read_record(self.folder / OWN / RECORD)
            names = self._names()
            stamps = {name: _stamp(self.folder / name) for name in sorted(names, key=_last_first)}
            changed = [name for name, stamp in stamps.items() if self._known(name)[0] != stamp]
            try:
                for name in tqdm(changed, "send", unit=" files", delay=2, disable=not progress):
                    self._put(name, stamps[name])
                for name in [n for n in self.record if n not in names and self._is_gone(n)]:
                    self.store.remove(name)
                    del self.record[name]
            finally:
                self._save()

    def _put(self, name: str, stamp: str) -> None:
        try:
            self.record[name] = (stamp, self.store.put(self.folder / name, name))
        except StoreError:
            if (self.folder / name).exists():
                raise  # else it was deleted just now

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
            return self.whole_shards
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
            mirror.send(progress=True)
        except StoreError as problem:  # the command's own error comes last
            print(f"store: {_kept(problem, mirror)}", file=sys.stderr, flush=True)
        raise
    _end(thread, stop)
    if makes_shards:
        mirror.finish_shards()
    try:
        mirror.send(progress=True)
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
