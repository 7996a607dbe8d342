"""Stage 1: recordings become shards.

Reads   the Push-T simulator, human demonstrations, Minecraft recordings, or arrays from elsewhere.
Writes  RUN/shards: shard-00000.h5 and so on, and build.json, which says what made them.
Try     python -m data.preprocess pusht --run runs/pusht --preset pusht cpu
Next    train_tokenizer.py
"""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

from data.arrays import ArraySource, Layout
from data.build_shards import Source, available_cpus, build
from data.check import main_check
from data.download import fetch
from data.pusht.demos import Demonstrations
from data.pusht.perturbed_demos import PerturbedDemos
from data.pusht.scripted_episodes import ScriptedEpisodes
from data.shards import EpisodeDataset, shards_folder
from data.vpt.file_slice import VideoAndLog
from data.vpt.find import find_local
from data.vpt.index import download_recordings, load_index, local_name, sample_recordings
from data.vpt.recordings import FrameFormat, VptSource
from data.vpt.vpt_report import report
from pipeline.cli import Command, flag_aliases, run_commands, unprefixed
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
    perturb: int = 0
    """Carry each demonstration out so many times in the simulator: the first exactly, the others
    with noise, every second one mirrored; 0 takes the demonstrations as recorded."""
    episodes: int = 2000
    """Episodes of the scripted pusher."""
    resolution: int = 64
    """Height and width of a frame, in pixels."""
    seed: int = 0
    """Of episodes, noise and splits."""
    num_workers: int = available_cpus()
    """Processes; what is written does not depend on it."""
    restart: bool = False
    """Throw away what is there and begin anew."""


RESOLUTION_RANGE = 16, 1024  # the simulator's own 512 pixels, and twice as fine

PRESETS = {
    "pusht": lambda c: c,
    "tokens": lambda c: c,
    "high_res": lambda c: replace(c, resolution=96),
    "goals": lambda c: c,
    "dinov2": lambda c: c,
    "latent": lambda c: c,
    "cpu": lambda c: replace(c, episodes=480),
    "hour": lambda c: replace(c, episodes=960),
    "debug": lambda c: replace(c, episodes=6),
}


def pusht(config: PushTConfig) -> None:
    smallest, largest = RESOLUTION_RANGE
    if not smallest <= config.resolution <= largest:
        raise ValueError(
            f"--resolution {config.resolution} is no picture; give {smallest} to {largest}"
        )
    if config.perturb and not config.demos:
        raise ValueError("--replays needs --demos, the demonstrations to replay")
    if config.episodes < 1 or config.perturb < 0 or config.num_workers < 1:
        raise ValueError("--episodes and --workers start at 1, --replays at 0")
    with _locked_shards(config.run) as folder:
        source: Source
        if config.demos:
            path = _local_demos(config)
            if config.perturb:
                source = PerturbedDemos(str(path), config.perturb, config.resolution, config.seed)
            else:
                source = Demonstrations(str(path), config.resolution)
        else:
            source = ScriptedEpisodes(config.episodes, config.resolution, config.seed)
        _build_and_report(source, folder, config.seed, config.num_workers, config.restart)


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
    num_workers: int = available_cpus()
    restart: bool = False
    """Throw away what is there and begin anew."""


def arrays(config: ArraysConfig) -> None:
    with _locked_shards(config.run) as folder:
        source = ArraySource(str(config.path), config.layout, config.scale)
        _build_and_report(source, folder, config.seed, config.num_workers, config.restart)


@contextmanager
def _locked_shards(run: Path) -> Iterator[Path]:
    """The folder of a run's shards, for one process at a time, or one job of several ranks."""
    folder = run / "shards"
    folder.mkdir(parents=True, exist_ok=True)
    with lock(folder) if int(os.environ.get("RANK", 0)) == 0 else nullcontext():
        yield folder


def _local_demos(config: PushTConfig) -> Path:
    if "://" in config.demos:
        return fetch(config.demos, config.run / "download", config.checksum or None)
    return Path(config.demos)


def _build_and_report(
    source: Source, folder: Path, seed: int, num_workers: int, restart: bool, group_size: int = 1
) -> None:
    words = [w for w in sys.argv[1:] if w not in ("--restart", "--force")]
    command = f"python -m data.preprocess {shlex.join(words)}"
    made = build(source, folder, command, seed, num_workers, restart, group_size)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:  # the others may not be done yet
        print(f"shards: rank {os.environ.get('RANK', 0)} made {made} in {folder}")
        return
    dataset = EpisodeDataset(folder)
    counts = {split: len(dataset.episodes(split)) for split in ("train", "validation", "test")}
    summary = f"{made} shards made" if made else "all shards were there"
    line = (
        f"shards: {summary} in {folder}: {dataset.num_frames} frames, {len(dataset)} episodes "
        f"({', '.join(f'{n} {split}' for split, n in counts.items())})"
    )
    if dataset.has("contacts"):
        contacts = dataset.read_rows("contacts", 0, dataset.num_frames)
        line += f", in contact in {(contacts > 0).mean():.0%} of them"
    if dataset.has("rewards"):
        max_rewards = [dataset.read(e, "rewards").max() for e in range(len(dataset))]
        line += f", best reward of an episode {sum(max_rewards) / len(max_rewards):.2f} on average"
    print(line)


@dataclass(frozen=True)
class VptConfig:
    run: Path = Path("runs/minecraft")
    """Folder of the world model; its shards are written."""
    recordings: Path | None = None
    """A folder of NAME.mp4 and NAME.jsonl pairs or of tar files of them, one tar, or one mp4."""
    index: str = ""
    """OpenAI's index of recordings, a file or a URL: they are downloaded."""
    num_recordings: int = 10
    """Recordings of the index to take."""
    frame_format: Annotated[FrameFormat, unprefixed()] = field(default_factory=FrameFormat)
    skip_invalid: bool = False
    """Leave out what cannot be used, and count it; a broken line counts as nothing new done."""
    download_workers: int = 8
    """Files that are fetched at a time."""
    seed: int = 0
    """Of the choice from the index, and of splits."""
    num_workers: int = available_cpus()
    """Processes that decode; what is written does not depend on it."""
    restart: Annotated[bool, flag_aliases("--force")] = False
    """Throw away what is there and begin anew."""


VPT_PRESETS = {
    "minecraft": lambda c: c,
    "minecraft-150m": lambda c: c,
    "high_res": lambda c: replace(c, look=replace(c.look, resolution=128)),
    "tokens": lambda c: c,
    "cpu": lambda c: c,
    "hour": lambda c: c,
    "debug": lambda c: c,
}


def vpt(config: VptConfig) -> None:
    if bool(config.index) == bool(config.recordings):
        raise ValueError("--recordings PATH or --index FILE|URL, one of the two, says what to read")
    if config.num_recordings < 1 or config.num_workers < 1 or config.download_workers < 1:
        raise ValueError("--clips, --workers and --downloads start at 1")
    with _locked_shards(config.run) as folder:
        if config.recordings:
            pairs, missing = find_local(config.recordings, config.skip_invalid)
            names = tuple(pair.name for pair in pairs)
        else:
            names, pairs, missing = _from_index(config)
        source = VptSource(names, tuple(pairs), config.frame_format, config.skip_invalid)
        start = time.monotonic()
        _build_and_report(
            source,
            folder,
            config.seed,
            config.num_workers,
            config.restart,
            source.shards_per_recording,
        )
        for line in report(folder, missing, time.monotonic() - start):
            print(line)


def _from_index(config: VptConfig) -> tuple[tuple[str, ...], list[VideoAndLog], list[str]]:
    """Fetch this rank's share of the recordings chosen: all names, its pairs, what was not had."""
    folder = config.run / "download"
    stems = sample_recordings(load_index(config.index, folder), config.num_recordings, config.seed)
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    pairs, missing = download_recordings(
        stems[rank::world_size], folder, config.download_workers, config.skip_invalid
    )
    return tuple(local_name(stem) for stem in stems), pairs, missing


@dataclass(frozen=True)
class CheckConfig:
    shards: Path
    """A folder of shards, or the run folder that holds it."""


def check(config: CheckConfig) -> None:
    main_check(shards_folder(config.shards))


COMMANDS = {
    "vpt": Command(vpt, VptConfig, VPT_PRESETS, "Minecraft: OpenAI's contractor recordings"),
    "pusht": Command(pusht, PushTConfig, PRESETS, "Push-T: scripted pusher or demonstrations"),
    "arrays": Command(arrays, ArraysConfig, {}, "HDF5, .npy or .npz recordings from elsewhere"),
    "check": Command(check, CheckConfig, {}, "validate shards, print statistics, draw a sheet"),
}

if __name__ == "__main__":
    run_commands(COMMANDS, __doc__ or "")
