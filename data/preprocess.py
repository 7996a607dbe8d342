"""Stage 1: recordings become shards.

Reads   the Push-T simulator, human demonstrations, or arrays from elsewhere.
Writes  RUN/shards: shard-00000.h5 and so on, and build.json, which says what made them.
Try     python -m data.preprocess pusht --run runs/pusht --preset pusht cpu
Next    train_tokenizer.py
"""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from data.arrays import Arrays, Layout
from data.build import Source, build, cores
from data.check import main_check
from data.demos import Demonstrations
from data.download import fetch
from data.pushes import ScriptedPushes
from data.replays import Replays
from data.shards import Recordings
from pipeline.cli import Command, run_commands
from pipeline.lock import lock


@dataclass(frozen=True)
class PushTConfig:
    run: Path = Path("runs/pusht")
    """Folder of the world model; its shards are written."""
    demos: str = ""
    """Human demonstrations: a zarr folder, a zip, an npz, or a URL of one; without it, a scripted
    pusher makes the episodes."""
    checksum: str = ""
    """SHA-256 that a download must have."""
    replays: int = 0
    """Carry each demonstration out so many times in the simulator: the first exactly, the others
    with noise; 0 takes the demonstrations as recorded."""
    episodes: int = 2000
    """Episodes of the scripted pusher."""
    resolution: int = 64
    """Height and width of a frame, in pixels."""
    seed: int = 0
    """Of episodes, noise and splits."""
    workers: int = cores()
    """Processes; what is written does not depend on it."""
    restart: bool = False
    """Throw away what is there and begin anew."""


PRESETS = {
    "pusht": lambda c: c,
    "high_res": lambda c: replace(c, resolution=96),
    "goals": lambda c: c,
    "dinov2": lambda c: c,
    "latent": lambda c: c,
    "cpu": lambda c: replace(c, episodes=360),
    "hour": lambda c: replace(c, episodes=720),
    "debug": lambda c: replace(c, episodes=6),
}


def pusht(config: PushTConfig) -> None:
    if config.resolution < 16:
        raise ValueError(f"--resolution {config.resolution} shows nothing; give 16 or more")
    if config.replays and not config.demos:
        raise ValueError("--replays needs --demos, the demonstrations to replay")
    if config.episodes < 1 or config.replays < 0 or config.workers < 1:
        raise ValueError("--episodes and --workers start at 1, --replays at 0")
    folder = config.run / "shards"
    folder.mkdir(parents=True, exist_ok=True)
    held = _hold(folder)
    source: Source
    if config.demos:
        path = _local(config)
        if config.replays:
            source = Replays(str(path), config.replays, config.resolution, config.seed)
        else:
            source = Demonstrations(str(path), config.resolution)
    else:
        source = ScriptedPushes(config.episodes, config.resolution, config.seed)
    _build(source, folder, config.seed, config.workers, config.restart)
    if held:
        held.close()


@dataclass(frozen=True)
class ArraysConfig:
    path: Path
    """An HDF5 file with frames and actions, a folder or stem of .npy pairs, or a folder of .npz."""
    run: Path = Path("runs/arrays")
    """Folder of the world model; its shards are written."""
    layout: Layout = "auto"
    """Order of a frame's axes, where it cannot be told from the sizes."""
    scale: float = 1.0
    """Factor to 0..255, for frames stored as fractions."""
    seed: int = 0
    """Of the splits."""
    workers: int = cores()
    restart: bool = False
    """Throw away what is there and begin anew."""


def arrays(config: ArraysConfig) -> None:
    folder = config.run / "shards"
    folder.mkdir(parents=True, exist_ok=True)
    held = _hold(folder)
    source = Arrays(str(config.path), config.layout, config.scale)
    _build(source, folder, config.seed, config.workers, config.restart)
    if held:
        held.close()


def _hold(folder: Path) -> IO[str] | None:
    """One process at a time, or one job of several ranks."""
    return lock(folder) if int(os.environ.get("RANK", 0)) == 0 else None


def _local(config: PushTConfig) -> Path:
    if "://" in config.demos:
        return fetch(config.demos, config.run / "download", config.checksum or None)
    return Path(config.demos)


def _build(source: Source, folder: Path, seed: int, workers: int, restart: bool) -> None:
    words = [w for w in sys.argv[1:] if w != "--restart"]
    command = f"python -m data.preprocess {shlex.join(words)}"
    made = build(source, folder, command, seed, workers, restart)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:  # the others may not be done yet
        print(f"shards: rank {os.environ.get('RANK', 0)} made {made} in {folder}")
        return
    recordings = Recordings(folder)
    counts = {split: len(recordings.episodes(split)) for split in ("train", "validation", "test")}
    done = f"{made} shards made" if made else "all shards were there"
    line = (
        f"shards: {done} in {folder}: {recordings.total} frames, {len(recordings)} episodes "
        f"({', '.join(f'{n} {split}' for split, n in counts.items())})"
    )
    if recordings.has("contacts"):
        contacts = recordings.read_rows("contacts", 0, recordings.total)
        line += f", in contact in {(contacts > 0).mean():.0%} of them"
    if recordings.has("rewards"):
        best = [recordings.read(e, "rewards").max() for e in range(len(recordings))]
        line += f", best reward of an episode {sum(best) / len(best):.2f} on average"
    print(line)


@dataclass(frozen=True)
class CheckConfig:
    shards: Path
    """A folder of shards, or the run folder that holds it."""


def check(config: CheckConfig) -> None:
    inside = config.shards / "shards"
    main_check(inside if inside.is_dir() else config.shards)


COMMANDS = {
    "pusht": Command(pusht, PushTConfig, PRESETS, "Push-T: scripted pusher or demonstrations"),
    "arrays": Command(arrays, ArraysConfig, {}, "HDF5, .npy or .npz recordings from elsewhere"),
    "check": Command(check, CheckConfig, {}, "validate shards, print statistics, draw a sheet"),
}

if __name__ == "__main__":
    run_commands(COMMANDS, __doc__ or "")
