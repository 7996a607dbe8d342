"""From any source of episodes to a folder of shards, in parallel, and on from where it was.

Shard i of a source is a function of its settings and i alone, so neither the number of workers nor
an interruption can change what comes out.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from data.episodes import Episode
from data.files import atomic_write
from data.shards import (
    BUILD_FILE,
    FORMAT,
    SKIPPED,
    read_build_info,
    read_header,
    shard_name,
    write_shard,
)
from data.splits import split_sources


def available_cpus() -> int:
    """Count the processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class SkipShard(ValueError):
    """Why a source makes nothing of one of its shards; the others are made all the same."""


class Source(Protocol):
    """Picklable; every method is a function of the source's own settings."""

    @property
    def num_shards(self) -> int:
        """How many shards it makes."""
        ...

    @property
    def num_sources(self) -> int:
        """How many independent sources its episodes stem from; splits never part one."""
        ...

    def description(self) -> dict[str, Any]:
        """What every shard says of itself."""
        ...

    def make_shard(self, index: int) -> list[Episode]:
        """The episodes of one shard; their split is filled in by `build`. May raise LeftOut."""
        ...


def build(
    source: Source,
    folder: Path,
    command: str,
    seed: int = 0,
    num_workers: int = 1,
    restart: bool = False,
    group_size: int = 1,
) -> int:
    """Write the shards that are missing, and give the number of those that were.

    Under torchrun or an array job (RANK, WORLD_SIZE) each rank takes its share, `together` shards
    in a row at a time. What a source leaves out is noted in a file in the place of the shard, and
    tried again by the next call. ValueError when the folder holds shards of other settings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    description = json.loads(json.dumps(source.description() | {"split_seed": seed}))
    if rank == 0:
        _check_or_write_build_info(folder, description, source.num_shards, command, restart)
    missing = [
        index
        for index in range(source.num_shards)
        if index // group_size % world_size == rank
        and not _is_complete(folder / shard_name(index), description)
    ]
    if not missing:
        return 0
    started = time.monotonic()
    splits = split_sources(source.num_sources, seed)
    with tqdm(
        total=source.num_shards, initial=source.num_shards - len(missing), desc="shards"
    ) as progress:
        num_workers, made = min(num_workers, len(missing)), 0
        for written in _make_missing(source, folder, missing, num_workers, splits, description):
            made += written
            progress.update()
    if rank == 0:
        _add_seconds(folder, time.monotonic() - started)
    return made


def _make_missing(
    source: Source,
    folder: Path,
    missing: list[int],
    num_workers: int,
    splits: Any,
    description: dict[str, Any],
) -> Iterator[bool]:
    """Make the missing shards, in processes if more than one is to be had; tells of each whether it
    was, or was left out."""
    jobs = [(source, index, folder / shard_name(index), splits, description) for index in missing]
    if num_workers == 1:
        for job in jobs:
            yield _make_shard(*job)
        return
    with ProcessPoolExecutor(num_workers, multiprocessing.get_context("spawn")) as pool:
        try:
            pending = {pool.submit(_make_shard, *job) for job in jobs}
            while pending:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _check_or_write_build_info(
    folder: Path, description: dict[str, Any], num_shards: int, command: str, restart: bool
) -> None:
    """Note what the folder is going to hold, or see that it is the same."""
    build_file = folder / BUILD_FILE
    if restart:
        for path in [*folder.glob("shard-*.h5"), *folder.glob(f"*{SKIPPED}"), build_file]:
            path.unlink(missing_ok=True)
    known = read_build_info(folder)
    if known is not None:
        for key, value in description.items():
            if known["description"].get(key) != value:
                raise ValueError(
                    f"{folder} holds shards with {key} {known['description'].get(key)}, but now it "
                    f"is {value}; --restart makes them anew, another --run keeps both"
                )
        return
    info = {"description": description, "shards": num_shards, "command": command, "seconds": 0.0}
    atomic_write(build_file, json.dumps(info, indent=1).encode())


def _is_complete(path: Path, description: dict[str, Any]) -> bool:
    """A shard that can be opened and is of these settings; one that cannot is made again."""
    if not path.exists():
        return False
    try:
        return read_header(path).description == {"format": FORMAT} | description
    except ValueError:
        return False


def _make_shard(
    source: Source, index: int, path: Path, splits: Any, description: dict[str, Any]
) -> bool:
    reason = path.with_suffix(SKIPPED)
    try:
        episodes = source.make_shard(index)
    except SkipShard as problem:
        atomic_write(reason, f"{problem}\n".encode())
        return False
    reason.unlink(missing_ok=True)
    for episode in episodes:
        episode.split = int(splits[episode.source])
    write_shard(path, episodes, description)
    return True


def _add_seconds(folder: Path, seconds: float) -> None:
    info = read_build_info(folder)
    assert info is not None, "noted at the beginning"
    info["seconds"] = round(info["seconds"] + seconds, 1)
    atomic_write(folder / BUILD_FILE, json.dumps(info, indent=1).encode())
