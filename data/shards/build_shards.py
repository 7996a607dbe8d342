"""Build a folder of shards from a source of episodes: in parallel, and resumable.

Shard i is a function of the source's settings and i alone, so neither the number of workers nor an
interruption changes the result.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from tqdm import tqdm

from data.io.files import atomic_write, remove_abandoned
from data.io.messages import first_few
from data.processes import map_in_processes, rank_and_world_size
from data.shards.build_info import (
    BUILD_FILE,
    SKIPPED,
    read_build_info,
    shard_index,
    shard_name,
    skipped_shards,
)
from data.shards.draw_frames import draw_frames
from data.shards.episodes import Episode
from data.shards.identity import as_stored, describe_change
from data.shards.shard_header import FORMAT, read_header
from data.shards.splits import LONG_ENOUGH, split_sources
from data.shards.write_shard import write_shard


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


@runtime_checkable
class HasLengths(Protocol):
    """A source that knows how long its episodes are."""

    @property
    def source_lengths(self) -> Sequence[int]:
        """Frames of the episodes of each independent source."""
        ...


@runtime_checkable
class Grows(Protocol):
    """A source that adds shards to those of earlier calls, and splits each by itself."""

    def build_info(self) -> dict[str, Any]:
        """Return what build.json keeps of the source, its command among it."""
        ...

    def split_shard(self, index: int, lengths: list[int], seed: int) -> list[int]:
        """Return the split of each episode of a shard, an index into SPLITS."""
        ...


def build(
    source: Source,
    folder: Path,
    command: str,
    seed: int = 0,
    num_workers: int = 1,
    restart: bool = False,
    group_size: int = 1,
    with_images: bool = False,
) -> int:
    """Write the missing shards, and return the number of shards written.

    Under torchrun or an array job (RANK, WORLD_SIZE) each rank takes its share, in groups of
    `group_size` consecutive shards; none waits for another, or deletes what another makes. A
    skipped shard leaves a file with the reason in its place, and is tried again by the next call.
    ValueError where the folder holds shards of other settings, or of other recordings.
    A source that grows keeps the shards that are there, and has more of them than before.
    With images, frames of each shard are drawn in FOLDER/images, for those who follow the build.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rank, world_size = rank_and_world_size()
    if source.num_shards < 1:
        raise ValueError("there are no episodes to write shards of; name a source that has some")
    lengths = source.source_lengths if isinstance(source, HasLengths) else None
    description = json.loads(json.dumps(_describe(source, lengths, seed)))
    known = None if restart else _known_build(folder)
    is_new = known is None and rank == 0
    if known is not None:
        count = None if isinstance(source, Grows) else source.num_shards
        _check_same_build(folder, known, description, count)
        description = as_stored(description, known)
    share = [i for i in range(source.num_shards) if i // group_size % world_size == rank]
    if rank == 0:
        remove_abandoned(folder)
        info = {"description": description, "shards": source.num_shards, "command": command}
        if restart or not (folder / BUILD_FILE).exists():
            info |= {"seconds": 0.0} | (source.build_info() if isinstance(source, Grows) else {})
            _write_build_info(folder, info)
        elif isinstance(source, Grows) and known is not None:
            _write_build_info(folder, known | info | source.build_info())
    if restart:
        _delete(folder, set(share), source.num_shards if rank == 0 else None)
    missing = [i for i in share if not _is_complete(folder / shard_name(i), description)]
    if not missing:
        return 0
    started = time.monotonic()
    min_frames = description.get("split_min_frames", 0)
    splits: Any = seed
    if not isinstance(source, Grows):
        splits = split_sources(source.num_sources, seed, lengths, min_frames)
    jobs = [(source, i, folder / shard_name(i), splits, description, with_images) for i in missing]
    num_workers = min(num_workers, len(missing))
    advice = f"lower --num-workers, now {num_workers}, or make smaller frames; shards are kept"
    made, total = 0, source.num_shards
    try:
        with tqdm(total=total, initial=total - len(missing), desc="shards") as progress:
            for written in map_in_processes(_make_shard, jobs, num_workers, advice):
                made += written
                progress.update()
    except ValueError:
        if is_new and not any(folder.glob("shard-*")):  # nothing was begun that could be resumed
            (folder / BUILD_FILE).unlink(missing_ok=True)
        raise
    if rank == 0:
        _add_seconds(folder, time.monotonic() - started)
    _check_share_is_there(folder, share)
    return made


def count_shards(folder: Path, count: int) -> int:
    """Count the shards with a number below `count` that were made, or skipped."""
    made = {shard_index(path) for path in folder.glob("shard-*.h5")} | {*skipped_shards(folder)}
    return sum(index is not None and index < count for index in made)


def _describe(source: Source, lengths: Sequence[int] | None, seed: int) -> dict[str, Any]:
    """Return the description of the shards, with how their splits are drawn."""
    description = source.description() | {"split_seed": seed}
    if lengths and min(lengths) < LONG_ENOUGH <= max(lengths):
        description["split_min_frames"] = LONG_ENOUGH
    return description


def _known_build(folder: Path) -> dict[str, Any] | None:
    """Return the build info of existing shards; without a build file, what one of them says."""
    info = read_build_info(folder)
    if info is not None:
        return info
    for path in sorted(folder.glob("shard-*.h5")):
        try:
            description = read_header(path).description
        except ValueError:  # it will be written anew
            continue
        return {"description": {k: v for k, v in description.items() if k != "format"}}
    return None


def _check_same_build(
    folder: Path, known: dict[str, Any], description: dict[str, Any], num_shards: int | None
) -> None:
    """num_shards: None for a source that may have more of them now."""
    problem = describe_change(known["description"], description, folder)
    count = known.get("shards", num_shards)
    # only where recordings are not known
    if not problem and num_shards is not None and count != num_shards:
        problem = f"{folder} is of {count} shards, but now there are {num_shards}"
    if problem:
        raise ValueError(f"{problem}; --restart makes them anew, another --run keeps both")


def _delete(folder: Path, share: set[int], end: int | None) -> None:
    """Delete the shards of a share; with `end` also what has a number from there on, or none."""
    for path in [*folder.glob("shard-*.h5"), *folder.glob(f"shard-*{SKIPPED}")]:
        index = shard_index(path)
        foreign = end is not None and (index is None or index >= end)
        if index in share or foreign:
            path.unlink(missing_ok=True)


def _check_share_is_there(folder: Path, share: list[int]) -> None:
    skipped = skipped_shards(folder)
    gone = [shard_name(i) for i in share if not (folder / shard_name(i)).exists()]
    gone = [name for name in gone if shard_index(Path(name)) not in skipped]
    if gone:
        raise ValueError(
            f"{first_few(gone)} in {folder} were written, and are not there; another process "
            f"deletes them: let one build at a time work there, and run again"
        )


def _is_complete(path: Path, description: dict[str, Any]) -> bool:
    """Return whether the shard can be opened and has these settings."""
    if not path.exists():
        return False
    try:
        return read_header(path).description == {"format": FORMAT} | description
    except ValueError:
        return False


def _make_shard(
    source: Source,
    index: int,
    path: Path,
    splits: Any,
    description: dict[str, Any],
    with_image: bool,
) -> bool:
    """splits: of each independent source; the seed of those of a source that grows."""
    reason = path.with_suffix(SKIPPED)
    try:
        episodes = source.make_shard(index)
    except SkipShard as problem:
        atomic_write(reason, f"{problem}\n".encode())
        return False
    reason.unlink(missing_ok=True)
    if isinstance(source, Grows):
        own = source.split_shard(index, [len(episode) for episode in episodes], splits)
        for episode, split in zip(episodes, own, strict=True):
            episode.split = split
    else:
        for episode in episodes:
            episode.split = int(splits[episode.source])
    write_shard(path, episodes, description)
    if with_image:
        draw_frames(path.parent / "images" / f"frames-{index:06d}.png", episodes)
    return True


def _add_seconds(folder: Path, seconds: float) -> None:
    info = read_build_info(folder)
    if info is not None:
        _write_build_info(folder, info | {"seconds": round(info["seconds"] + seconds, 1)})


def _write_build_info(folder: Path, info: dict[str, Any]) -> None:
    atomic_write(folder / BUILD_FILE, json.dumps(info, indent=1).encode())
