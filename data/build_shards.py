"""Build a folder of shards from a source of episodes: in parallel, and resumable.

Shard i is a function of the source's settings and i alone, so neither the number of workers nor an
interruption changes the result.
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
    """Raised by a source that has to skip one of its shards, with the reason."""


class Source(Protocol):
    """A source of episodes. It is picklable; its methods depend on its settings alone."""

    @property
    def num_shards(self) -> int:
        """Number of shards."""
        ...

    @property
    def num_sources(self) -> int:
        """Number of independent sources of its episodes; a split holds each whole."""
        ...

    def description(self) -> dict[str, Any]:
        """Return the description stored in every shard."""
        ...

    def make_shard(self, index: int) -> list[Episode]:
        """Return the episodes of one shard; `build` sets their split. May raise SkipShard."""
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
    """Write the missing shards, and return the number of shards written.

    Under torchrun or an array job (RANK, WORLD_SIZE) each rank takes its share, in groups of
    `group_size` consecutive shards. A skipped shard leaves a file with the reason in its place,
    and is tried again by the next call. ValueError where the folder holds shards of other
    settings.
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
    """Write the missing shards, in `num_workers` processes; yield False for a skipped one."""
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
    """Write the build file of the folder, or check that it has the same description."""
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
                    f"is {value}; --restart rebuilds them, another --run keeps both"
                )
        return
    info = {"description": description, "shards": num_shards, "command": command, "seconds": 0.0}
    atomic_write(build_file, json.dumps(info, indent=1).encode())


def _is_complete(path: Path, description: dict[str, Any]) -> bool:
    """Return whether the shard can be opened and has these settings."""
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
    assert info is not None, "written at the start"
    info["seconds"] = round(info["seconds"] + seconds, 1)
    atomic_write(folder / BUILD_FILE, json.dumps(info, indent=1).encode())
