"""Stage 1: from a source of episodes to shards.

Reads   the Push-T simulator, human demonstrations, Minecraft recordings, or arrays.
Writes  RUN/shards: shard-00000.h5 and so on, and build.json, with the command and its settings.
Try     python preprocess.py pusht --run runs/pusht --preset pusht cpu
Next    train_tokenizer.py
"""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from data.arrays import ArraySource, Layout
from data.build_shards import Source, available_cpus, build
from data.check import main_check
from data.download import fetch
from data.files import lock
from data.pusht.demos import Demonstrations
from data.pusht.perturbed_demos import PerturbedDemos
from data.pusht.scripted_episodes import ScriptedEpisodes
from data.shards import EpisodeDataset, shards_folder
from data.vpt.file_slice import VideoAndLog
from data.vpt.find import find_local
from data.vpt.index import download_recordings, load_index, local_name, sample_recordings
from data.vpt.recordings import FrameFormat, VptSource
from data.vpt.vpt_report import report
from pipeline.cli import Command, run_commands, unprefixed


@dataclass(frozen=True)
class PushTConfig:
    run: Path = Path("runs/pusht")
    """Run folder; shards are written to RUN/shards."""
    demos: str = ""
    """Human demonstrations: a zarr folder, a zip, an npz, or a URL of one; empty for episodes of a
    scripted policy."""
    checksum: str = ""
    """Expected SHA-256 of a download."""
    perturb: int = 0
    """Copies of each demonstration, executed in the simulator: the first exact, the others with
    noise, every second one mirrored; 0 for the demonstrations themselves."""
    episodes: int = 2000
    """Episodes of the scripted policy."""
    resolution: int = 64
    """Height and width of a frame, in pixels."""
    seed: int = 0
    """Seed of episodes, noise and splits."""
    num_workers: int = available_cpus()
    """Processes; the shards do not depend on it."""
    restart: bool = False
    """Delete existing shards and start over."""


RESOLUTION_RANGE = 16, 1024  # pixels; the simulator renders at 512


def pusht(config: PushTConfig) -> None:
    smallest, largest = RESOLUTION_RANGE
    if not smallest <= config.resolution <= largest:
        raise ValueError(
            f"--resolution {config.resolution} must be between {smallest} and {largest}"
        )
    if config.perturb and not config.demos:
        raise ValueError("--perturb needs --demos, the demonstrations to perturb")
    if config.episodes < 1 or config.perturb < 0 or config.num_workers < 1:
        raise ValueError(
            "--episodes and --num-workers must be at least 1, and --perturb at least 0"
        )
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
    """HDF5 file of frames (and actions), folder or stem of .npy files, or folder of .npz."""
    run: Path = Path("runs/arrays")
    """Run folder; shards are written to RUN/shards."""
    layout: Layout = "auto"
    """Order of a frame's axes, where the sizes are ambiguous."""
    scale: float = 1.0
    """Factor to 0..255, for frames stored as fractions."""
    seed: int = 0
    """Seed of the splits."""
    num_workers: int = available_cpus()
    """Processes; the shards do not depend on it."""
    restart: bool = False
    """Delete existing shards and start over."""


def arrays(config: ArraysConfig) -> None:
    with _locked_shards(config.run) as folder:
        source = ArraySource(str(config.path), config.layout, config.scale)
        _build_and_report(source, folder, config.seed, config.num_workers, config.restart)


@contextmanager
def _locked_shards(run: Path) -> Iterator[Path]:
    """Create and lock the shards folder, for one process, or one job of several ranks."""
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
    words = [w for w in sys.argv[1:] if w != "--restart"]
    command = f"python preprocess.py {shlex.join(words)}"
    written = build(source, folder, command, seed, num_workers, restart, group_size)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:  # the other ranks may not be done yet
        print(f"shards: rank {os.environ.get('RANK', 0)} wrote {written} in {folder}")
        return
    dataset = EpisodeDataset(folder)
    counts = {split: len(dataset.episodes(split)) for split in ("train", "validation", "test")}
    summary = f"{written} shards written" if written else "all shards exist"
    line = (
        f"shards: {summary} in {folder}: {dataset.num_frames} frames, {len(dataset)} episodes "
        f"({', '.join(f'{n} {split}' for split, n in counts.items())})"
    )
    if not dataset.has("actions"):
        line += ", without actions"
    if dataset.has("contacts"):
        contacts = dataset.read_rows("contacts", 0, dataset.num_frames)
        line += f", in contact in {(contacts > 0).mean():.0%} of the frames"
    if dataset.has("rewards"):
        max_rewards = [dataset.read(e, "rewards").max() for e in range(len(dataset))]
        line += f", mean best reward of an episode {sum(max_rewards) / len(max_rewards):.2f}"
    print(line)


@dataclass(frozen=True)
class VptConfig:
    run: Path = Path("runs/minecraft")
    """Run folder; shards are written to RUN/shards."""
    recordings: Path | None = None
    """Folder of NAME.mp4 and NAME.jsonl pairs or of tar files of them, one tar, or one mp4."""
    index: str = ""
    """OpenAI's index of recordings to download, a file or a URL."""
    num_recordings: int = 10
    """Recordings drawn from the index."""
    frame_format: Annotated[FrameFormat, unprefixed()] = field(default_factory=FrameFormat)
    skip_invalid: bool = False
    """Skip and count invalid recordings; an invalid line of a log repeats the tick before."""
    download_workers: int = 8
    """Recordings that are downloaded at a time."""
    seed: int = 0
    """Seed of the draw from the index, and of the splits."""
    num_workers: int = available_cpus()
    """Processes that decode; the shards do not depend on it."""
    restart: bool = False
    """Delete existing shards and start over."""


def vpt(config: VptConfig) -> None:
    if bool(config.index) == bool(config.recordings):
        raise ValueError("give one of --recordings PATH and --index FILE|URL")
    if config.num_recordings < 1 or config.num_workers < 1 or config.download_workers < 1:
        raise ValueError(
            "--num-recordings, --num-workers and --download-workers must be at least 1"
        )
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
    """Download this rank's share of the draw; return all names, its pairs, and what is missing."""
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
    """Folder of shards, or the run folder that holds it."""


def check(config: CheckConfig) -> None:
    main_check(shards_folder(config.shards))


COMMANDS = {
    "vpt": Command(
        vpt,
        VptConfig,
        "Minecraft: OpenAI's contractor recordings",
        "preprocess_vpt",
        ("minecraft",),
    ),
    "pusht": Command(
        pusht,
        PushTConfig,
        "Push-T: scripted policy or human demonstrations",
        "preprocess_pusht",
        ("pusht",),
    ),
    "arrays": Command(
        arrays, ArraysConfig, "HDF5, .npy or .npz files of episodes", "preprocess_arrays"
    ),
    "check": Command(check, CheckConfig, "validate shards, print statistics, draw a sheet"),
}

if __name__ == "__main__":
    run_commands(COMMANDS, __doc__ or "")
