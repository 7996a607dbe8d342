"""Stage 1: from a source of episodes to shards.

Reads   the Push-T simulator, human demonstrations, Minecraft recordings, any gymnasium
        environment, arrays, still images, or videos without actions.
Writes  RUN/shards: shard-00000.h5 and so on, and build.json, with the command and its settings.
Try     python preprocess.py pusht --run runs/pusht --preset pusht cpu
Next    train_tokenizer.py
"""

from __future__ import annotations

if __name__ in ("__main__", "__mp_main__"):  # a script, or a worker process of one
    from pipeline.startup import start

    start(__name__)

import shlex
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Protocol

from data.checks.check import main_check
from data.checks.summary import describe, warnings
from data.images.image_source import ImageSource, find_images
from data.io.download import local_file
from data.io.files import lock, writable_folder
from data.io.messages import counted
from data.io.sniff import describe_content
from data.processes import rank_and_world_size
from data.pusht.demo_ends import describe_ends
from data.pusht.demos import Demonstrations
from data.pusht.perturbed_demos import PerturbedDemos
from data.pusht.scripted_episodes import ScriptedEpisodes
from data.pusht.simulator import WINDOW_SIZE
from data.pusht.task_goal import TASK_GOAL, Goal, check_in_world, describe_goals
from data.ranges import MAX_SEED, MAX_SIDE, MAX_WORKERS, MIN_SIDE, CheckedConfig, Range
from data.shards.build_info import read_build_info, shards_folder
from data.shards.build_shards import Source, available_cpus, build, count_shards
from data.shards.episode_dataset import EpisodeDataset
from data.video.video_report import describe_videos
from data.vpt.content import check_unchanged
from data.vpt.file_slice import VideoAndLog
from data.vpt.find import find_local
from data.vpt.index import download_recordings, load_index, local_name, sample_recordings
from data.vpt.recordings import FrameFormat, VptSource
from data.vpt.vpt_report import report
from pipeline.cli import Command, run_commands, unprefixed
from pipeline.flags import repeatable
from pipeline.recording.arrays_config import ArraysConfig, arrays_source
from pipeline.recording.gym_config import GymConfig, gym_source, split_seed
from pipeline.recording.gym_report import describe_rounds
from pipeline.recording.images_config import ImagesConfig
from pipeline.recording.video_config import VideoConfig, video_source


@dataclass(frozen=True)
class PushTConfig(CheckedConfig):
    run: Path = Path("runs/pusht")
    """Run folder; shards are written to RUN/shards."""
    demos: str = ""
    """Human demonstrations: a zarr folder, a zip, an npz, or a URL of one; empty for episodes of a
    scripted policy."""
    checksum: str = ""
    """Expected SHA-256 of the file of the demonstrations."""
    perturb: Annotated[int, Range(0, 10**4)] = 0
    """Copies of each demonstration, executed in the simulator: every second one mirrored, and
    all with noise but the first and the first mirrored; 0 for the demonstrations themselves."""
    goal: Annotated[Goal | None, Range(-360, WINDOW_SIZE)] = None
    """X Y DEGREES: where the block belongs in demonstrations of another goal than the task's
    256 256 45, which frames and rewards then show; no copy is mirrored."""
    random_goal: bool = False
    """Give each episode a goal of its own, drawn in its frames and rewarded: each copy of
    --perturb is mirrored, turned and shifted as a whole, its goal with it; the scripted policy
    pushes to goals anywhere."""
    episodes: Annotated[int, Range(1, 10**6)] = 2000
    """Episodes of the scripted policy."""
    resolution: Annotated[int, Range(MIN_SIDE, MAX_SIDE)] = 64
    """Height and width of a frame, in pixels."""
    seed: Annotated[int, Range(0, MAX_SEED)] = 0
    """Seed of episodes, noise and splits."""
    num_workers: Annotated[int, Range(1, MAX_WORKERS)] = available_cpus()
    """Processes; the shards do not depend on it."""
    live: Annotated[int, Range(0, 65535)] = 0
    """Port of a page that follows it at 127.0.0.1; 0 is no page."""
    restart: bool = False
    """Delete existing shards and start over."""


def pusht(config: PushTConfig) -> None:
    if config.checksum and not config.demos:
        raise ValueError("--checksum needs --demos, the file that it is of")
    if config.perturb and not config.demos:
        raise ValueError("--perturb needs --demos, the demonstrations to perturb")
    if config.goal and not config.demos:
        raise ValueError("--goal needs --demos, the demonstrations that have another goal")
    if config.random_goal and config.demos and not config.perturb:
        raise ValueError(
            "--random-goal moves copies of demonstrations with their goals; give --perturb K too"
        )
    check_in_world(config.goal, "--goal")
    with _locked_shards(config.run) as folder:
        source: Source
        if config.demos:
            path = _local_demos(config)
            goal = None if config.goal == TASK_GOAL else config.goal
            print(describe_ends(path, goal))
            size = config.resolution
            if config.perturb:
                source = PerturbedDemos(
                    str(path), config.perturb, size, config.seed, goal, config.random_goal
                )
            else:
                source = Demonstrations(str(path), size, goal=goal)
        else:
            source = ScriptedEpisodes(
                config.episodes,
                config.resolution,
                config.seed,
                random_goal=config.random_goal,
            )
        _build_and_report(source, folder, config, config.seed)
        if config.random_goal:
            print(describe_goals(EpisodeDataset(folder).notes))


def arrays(config: ArraysConfig) -> None:
    with _locked_shards(config.run) as folder:
        source = arrays_source(config)
        for remark in source.remarks:
            print(f"arrays: {remark}")
        _build_and_report(source, folder, config, config.seed)


def video(config: VideoConfig) -> None:
    with _locked_shards(config.run) as folder:
        source, left_out = video_source(config)
        _build_and_report(source, folder, config, config.seed)
        if count_shards(folder, source.num_shards) == source.num_shards:
            print("\n".join(describe_videos(folder, left_out)))


@contextmanager
def _locked_shards(run: Path) -> Iterator[Path]:
    """Create and lock the shards folder, for one process, or one job of several ranks."""
    folder = writable_folder(run / "shards")
    with lock(folder) if rank_and_world_size()[0] == 0 else nullcontext():
        yield folder


def _local_demos(config: PushTConfig) -> Path:
    return local_file(
        config.demos,
        config.run / "download",
        "--demos",
        config.checksum or None,
        _other_than_archive,
        earlier=_shards_are_of(config.run, config.demos),
    )


def _other_than_archive(path: Path) -> str:
    """Say what a file is that is neither a zip nor an npz, which is a zip too."""
    if zipfile.is_zipfile(path):
        return ""
    content = describe_content(path)
    return "a zip archive without its end" if content.startswith("a zip archive") else content


def _shards_are_of(run: Path, address: str) -> bool:
    """Return whether the command that made the shards names this file or URL.

    Then downloads that an earlier version kept by their name alone are of this address.
    """
    try:
        info = read_build_info(run / "shards")
    except ValueError:
        return False
    words = shlex.split(info["command"]) if info else []
    return any(word == address or word.endswith(f"={address}") for word in words)


class BuildConfig(Protocol):
    """What all sources share."""

    @property
    def num_workers(self) -> int: ...
    @property
    def restart(self) -> bool: ...
    @property
    def live(self) -> int: ...


def _build_and_report(
    source: Source, folder: Path, config: BuildConfig, seed: int, group_size: int = 1
) -> None:
    command = f"python preprocess.py {shlex.join(repeatable(sys.argv[1:]))}"
    written = build(
        source, folder, command, seed, config.num_workers, config.restart, group_size,
        with_images=bool(config.live),
    )  # fmt: skip
    rank, world_size = rank_and_world_size()
    if world_size > 1:
        present = count_shards(folder, source.num_shards)
        print(
            f"shards: rank {rank} of {world_size} wrote {written} in {folder}, where "
            f"{present} of {source.num_shards} now are"
        )
        if present < source.num_shards:  # the other ranks make the rest, and the last says more
            return
    dataset = EpisodeDataset(folder)
    summary = f"{counted(written, 'shard')} written" if written else "all shards exist"
    for line in (f"shards: {summary} in {folder}: {describe(dataset)}", *warnings(dataset)):
        print(line)


@dataclass(frozen=True)
class VptConfig(CheckedConfig):
    run: Path = Path("runs/minecraft")
    """Run folder; shards are written to RUN/shards."""
    recordings: Path | None = None
    """Folder of NAME.mp4 and NAME.jsonl pairs or of tar files of them, one tar, or one mp4."""
    index: str = ""
    """OpenAI's index of recordings to download, a file or a URL."""
    num_recordings: Annotated[int, Range(1, 10**6)] = 10
    """Recordings drawn from the index."""
    frame_format: Annotated[FrameFormat, unprefixed()] = field(default_factory=FrameFormat)
    skip_invalid: bool = False
    """Skip and count invalid recordings; an invalid line of a log repeats the tick before."""
    download_workers: Annotated[int, Range(1, 256)] = 8
    """Recordings that are downloaded at a time."""
    seed: Annotated[int, Range(0, MAX_SEED)] = 0
    """Seed of the draw from the index, and of the splits."""
    num_workers: Annotated[int, Range(1, MAX_WORKERS)] = available_cpus()
    """Processes that decode; the shards do not depend on it."""
    live: Annotated[int, Range(0, 65535)] = 0
    """Port of a page that follows it at 127.0.0.1; 0 is no page."""
    restart: bool = False
    """Delete existing shards and start over."""


def vpt(config: VptConfig) -> None:
    if bool(config.index) == bool(config.recordings):
        raise ValueError("give one of --recordings PATH and --index FILE|URL")
    with _locked_shards(config.run) as folder:
        if config.recordings:
            pairs, missing = find_local(config.recordings, config.skip_invalid)
            names = tuple(pair.name for pair in pairs)
        else:
            names, pairs, missing = _from_index(config)
        if not config.restart:
            check_unchanged(folder, pairs)
        source = VptSource(names, tuple(pairs), config.frame_format, config.skip_invalid)
        start = time.monotonic()
        _build_and_report(source, folder, config, config.seed, source.shards_per_recording)
        for line in report(folder, missing, time.monotonic() - start):
            print(line)


def _from_index(config: VptConfig) -> tuple[tuple[str, ...], list[VideoAndLog], list[str]]:
    """Download this rank's share of the draw; return all names, its pairs, and what is missing."""
    folder = config.run / "download"
    stems = sample_recordings(load_index(config.index, folder), config.num_recordings, config.seed)
    rank, world_size = rank_and_world_size()
    pairs, missing = download_recordings(
        stems[rank::world_size],
        folder,
        config.download_workers,
        config.skip_invalid,
        earlier=_shards_are_of(config.run, config.index),
    )
    return tuple(local_name(stem) for stem in stems), pairs, missing


def gym(config: GymConfig) -> None:
    with _locked_shards(config.run) as folder:
        source = gym_source(config, folder)
        if source is None:
            print(f"gym: round {config.round} is recorded already")
        else:
            seed = split_seed(source)
            _build_and_report(source, folder, config, seed)
        for line in describe_rounds(folder):
            print(line)


def images(config: ImagesConfig) -> None:
    with _locked_shards(config.run) as folder:
        files, root, left_out = find_images(config.paths, config.num_workers)
        for line in left_out:
            print(f"images: left out: {line}")
        print(f"images: {len(files)} of {len(files) + len(left_out)} can be decoded, below {root}")
        source = ImageSource(
            files, root, config.resolution, config.crops, config.min_area, config.seed
        )
        _build_and_report(source, folder, config, config.seed)


@dataclass(frozen=True)
class CheckConfig(CheckedConfig):
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
        aliases=("minecraft",),
    ),
    "pusht": Command(
        pusht,
        PushTConfig,
        "Push-T: scripted policy or human demonstrations",
        "preprocess_pusht",
        ("pusht",),
    ),
    "arrays": Command(
        arrays, ArraysConfig, "HDF5, .npy, .npz, images or videos of episodes", "preprocess_arrays"
    ),
    "video": Command(
        video, VideoConfig, "videos and numbered images without actions", "preprocess_video"
    ),
    "gym": Command(
        gym, GymConfig, "any gymnasium environment; adds to a run's shards", "preprocess_gym"
    ),
    "images": Command(
        images, ImagesConfig, "PNG, JPEG and WebP files, without order", "preprocess_images"
    ),
    "check": Command(check, CheckConfig, "validate shards, print statistics, draw a sheet"),
}

if __name__ == "__main__":
    run_commands(COMMANDS, __doc__ or "")
