"""A run in an object store and its folder here: what is newer there is fetched before a command
begins, and what a command writes goes there while it runs and when it ends."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from data.io.files import PARTIAL, QUIETLY, atomic_write, lock, parse_json, read_text
from data.io.messages import first_few
from data.io.object_store import ObjectStore, StoreError, endpoint
from data.processes import rank_and_world_size
from data.shards.build_info import STORE_FILE, NoShards, shard_index, shard_paths
from data.shards.remote_shards import HEADERS_FILE, write_headers
from data.shards.shard_header import read_header

OWN = ".store"
"""Folder of what is known of the last exchange."""
RECORD, BUILDING = f"{OWN}/record.json", f"{OWN}/building"
CACHES = ("latents", "teacher", OWN)
"""Folders of a run that are made again where they are missing."""
EVERY = 15.0  # seconds between two looks at what has changed
SHARDS = "shards"
HEADERS = f"{SHARDS}/{HEADERS_FILE}"


class Mirror:
    """One run: its place in the store, and its folder.

    The record holds, for each file, its stamp here and its object's stamp when both were last the
    same.  What differs from the first has changed here, what differs from the second there.
    """

    def __init__(self, address: str, folder: Path, cache_bytes: int) -> None:
        self.store, self.folder, self.cache_bytes = ObjectStore(address), folder, cache_bytes
        self.record: dict[str, tuple[str, str]] = {}
        self.whole_shards = False
        self._told: set[str] = set()

    def fetch(self, whole_shards: bool) -> None:
        """Fetch what the store has and this folder lacks, or has of an earlier time; of shards
        those that `whole_shards` asks for, as the others are fetched when they are read.

        Nothing is deleted but copies of shards that were made anew.  ValueError names files that
        have changed both here and there, and another run that has this folder.
        """
        with lock(self.folder / OWN, waiting_for="fetches the same run"):
            self.record = self._read_record()
            there = self.store.stamps()
            self._check_one_run(there)
            # shards that a command was at when it was killed are newer than those of the store
            building = (self.folder / BUILDING).exists()
            self.whole_shards = whole_shards or building or HEADERS not in there
            here = {name: _stamp(self.folder / name) for name in self._names()}
            if not building and self._known(HEADERS)[1] != there.get(HEADERS, ""):
                self._forget_shards(there, here)
            news = {
                name: stamp
                for name, stamp in there.items()
                if self._is_wanted(name, building)
                and (name not in here or self._known(name)[1] != stamp)
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
                    f"{self._changed_twice(both)}; delete the folder to take the store's"
                )
            try:
                for name, stamp in tqdm(sorted(news.items()), "fetch", unit=" files", delay=2):
                    self.store.fetch(name, self.folder / name)
                    self.record[name] = (_stamp(self.folder / name), stamp)
            finally:
                # what is no longer there is sent again: a store may have been emptied
                self.record = {name: v for name, v in self.record.items() if name in there}
                self._save()
            self._describe_shards(changed=whole_shards or building)

    def send(self, progress: bool = False) -> None:
        """Make the store what the folder has, but for caches; shards that are only there stay.

        StoreError, once all else is sent, names what another machine has changed there.
        """
        with lock(self.folder / OWN, waiting_for=QUIETLY):
            self.record = self._read_record()
            there = self.store.stamps()
            names = self._names()
            stamps = {name: _stamp(self.folder / name) for name in sorted(names, key=_last_first)}
            changed = [
                name
                for name, stamp in stamps.items()
                if self._known(name)[0] != stamp and (self.whole_shards or not _is_shard(name))
            ]
            both = []
            try:
                for name in tqdm(changed, "send", unit=" files", delay=2, disable=not progress):
                    if there.get(name, "") == self._known(name)[1] or name not in there:
                        self._put(name, stamps[name])
                    elif self._is_same(name, there[name]):
                        self.record[name] = (stamps[name], there[name])
                    else:
                        both.append(name)
                for name in [n for n in self.record if n not in names and self._is_gone(n)]:
                    if there.get(name, "") == self._known(name)[1]:
                        self.store.remove(name)
                    del self.record[name]
            finally:
                self._save()
            if both:
                raise StoreError(f"{self._changed_twice(both)}; they were not sent")

    def begin_shards(self) -> None:
        """Note that shards are made here, so that those of the store are older, also after a
        kill."""
        atomic_write(self.folder / BUILDING, b"")

    def finish_shards(self) -> None:
        """Write the headers of all shards, where all are here; else say why there are none."""
        folder = self.folder / SHARDS
        try:
            write_headers(folder, [read_header(path) for path in shard_paths(folder)])
        except NoShards:
            return
        except ValueError as problem:  # some are of another process, or were not made
            self._tell(
                f"{self.store.address} has no {HEADERS} until all shards are made, so whoever "
                f"reads it fetches every shard: {problem}"
            )

    def end_shards(self) -> None:
        """Note that the store has what was made here."""
        (self.folder / BUILDING).unlink(missing_ok=True)

    def _put(self, name: str, stamp: str) -> None:
        try:
            self.record[name] = (stamp, self.store.put(self.folder / name, name))
        except StoreError:
            if (self.folder / name).exists():
                raise  # else it was deleted just now

    def _changed_twice(self, names: list[str]) -> str:
        return (
            f"{first_few(sorted(names))} changed both in {self.store.address} and in {self.folder} "
            f"since they were last exchanged, so another machine is at the same run, or was; let "
            f"one work there, or give --run the folder to go on without the store"
        )

    def _check_one_run(self, there: dict[str, str]) -> None:
        """ValueError for a place with several runs, and for a folder of another one."""
        runs = sorted({name.split("/")[0] for name in there if name.endswith("/run.json")})
        if "run.json" not in there and len(runs) > 1:
            raise ValueError(
                f"{self.store.address} holds {len(runs)} runs ({first_few(runs)}); name one of them"
            )

    def _forget_shards(self, there: dict[str, str], here: dict[str, str]) -> None:
        """Delete copies of shards that were made anew, and what describes them."""
        for name in [name for name in here if _is_shard(name) or name == HEADERS]:
            is_own = self._known(name) == (here[name], there.get(name)) or (
                name not in there and name not in self.record  # made here, and not sent
            )
            if not is_own and (name != HEADERS or name not in there):
                (self.folder / name).unlink(missing_ok=True)
                del here[name]
        (self.folder / SHARDS / STORE_FILE).unlink(missing_ok=True)

    def _describe_shards(self, changed: bool) -> None:
        """Let a dataset fetch what is not here; where shards are to change, all are here."""
        folder = self.folder / SHARDS
        if changed:
            for name in (HEADERS_FILE, STORE_FILE):
                (folder / name).unlink(missing_ok=True)
        elif (folder / HEADERS_FILE).exists():
            said = {"address": f"{self.store.address}/{SHARDS}", "cache_bytes": self.cache_bytes}
            atomic_write(folder / STORE_FILE, json.dumps(said).encode())

    def _is_wanted(self, name: str, building: bool) -> bool:
        if name.startswith(f"{SHARDS}/") and building:
            return False
        if _is_shard(name):
            return self.whole_shards
        return Path(name).parts[0] not in CACHES

    def _is_gone(self, name: str) -> bool:
        """Whether a file that is not here was deleted: most shards are just not fetched yet."""
        return self.whole_shards or not _is_shard(name)

    def _is_same(self, name: str, stamp: str) -> bool:
        """Whether file and object are equal, though a command was killed before it noted so."""
        path = self.folder / name
        if not path.exists() or stamp.split()[0] != str(path.stat().st_size):
            return False
        return self.store.read(name) == path.read_bytes()

    def _known(self, name: str) -> tuple[str, str]:
        return self.record.get(name, ("", ""))

    def _names(self) -> list[str]:
        """Files of the folder that belong in the store."""
        found = []
        for path in self.folder.rglob("*"):
            name = path.relative_to(self.folder)
            if name.parts[0] in CACHES or any(part.startswith(".") for part in name.parts):
                continue
            if path.name == STORE_FILE or PARTIAL.fullmatch(path.name) or not path.is_file():
                continue
            if not str(name).isprintable():  # nor is what is no UTF-8
                self._tell(f"{str(name)!r} is not sent, for its name; rename it")
                continue
            found.append(str(name))
        return found

    def _tell(self, line: str) -> None:
        if line not in self._told:
            self._told.add(line)
            print(f"store: {line}", file=sys.stderr, flush=True)

    def _save(self) -> None:
        rows = {"run": self._run_of_store(), "files": self.record}
        atomic_write(self.folder / RECORD, json.dumps(rows).encode())

    def _read_record(self) -> dict[str, tuple[str, str]]:
        """ValueError where the folder is of another run."""
        path = self.folder / RECORD
        try:
            found = parse_json(read_text(path))
            run = [str(part) for part in found["run"]]
            files = {str(k): (str(v[0]), str(v[1])) for k, v in found["files"].items()}
        except (OSError, ValueError, TypeError, AttributeError, LookupError):
            return {}  # all is compared anew
        if run != self._run_of_store():
            raise ValueError(
                f"{self.folder} is of {' at '.join(filter(None, run))}, not of "
                f"{' at '.join(filter(None, self._run_of_store()))}; move it away, or work in "
                f"another folder"
            )
        return files

    def _run_of_store(self) -> list[str]:
        return [self.store.address, endpoint()]


@contextmanager
def sent(mirror: Mirror, makes_shards: bool) -> Iterator[None]:
    """Send what a command writes, now and then and in the end, however it ends.

    While it runs a store that cannot be reached is said once, and tried again; in the end it is a
    StoreError.  Of several processes the first one sends, and those that make shards all do.
    """
    if rank_and_world_size()[0] and not makes_shards:
        yield
        return
    if makes_shards:
        mirror.begin_shards()
    stop = threading.Event()
    thread = threading.Thread(target=_send_often, args=(mirror, stop), daemon=True)
    thread.start()
    try:
        yield
    except BaseException:
        _end(thread, stop)
        try:
            _send_all(mirror, makes_shards)
        except StoreError as problem:  # the command's own error comes last
            print(f"store: {problem}", file=sys.stderr, flush=True)
        raise
    _end(thread, stop)
    _send_all(mirror, makes_shards)


def _send_all(mirror: Mirror, makes_shards: bool) -> None:
    """StoreError says where all is that could not be sent."""
    try:
        if makes_shards:
            mirror.finish_shards()
        mirror.send(progress=True)
        if makes_shards:
            mirror.end_shards()
    except (ValueError, OSError) as problem:
        raise StoreError(f"{problem}; until then all is in {mirror.folder}") from None


def _send_often(mirror: Mirror, stop: threading.Event) -> None:
    told = ""
    while not stop.wait(EVERY):
        try:
            mirror.send()
            told = ""
        except (ValueError, OSError) as problem:
            if str(problem) != told:
                print(f"store: {problem}; trying again", file=sys.stderr, flush=True)
            told = str(problem)


def _end(thread: threading.Thread, stop: threading.Event) -> None:
    stop.set()
    thread.join()


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
