"""What `preprocess.py arrays` asks for, and the source of episodes that it becomes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from data.actions import ActionSpec
from data.arrays.array_actions import MAX_CODES, ActionKind, ActionOptions
from data.arrays.array_frames import Layout
from data.arrays.array_source import ArraySource
from data.formats.step_alignment import Alignment
from data.ranges import MAX_SEED, MAX_SIDE, MAX_WORKERS, MIN_SIDE, CheckedConfig, Range
from data.shards.build_info import shards_folder
from data.shards.build_shards import available_cpus
from data.shards.episode_dataset import EpisodeDataset


@dataclass(frozen=True)
class ArraysConfig(CheckedConfig):
    path: Path
    """HDF5 file, folder of HDF5, of .npz, of numbered images or of .mp4, or folder or stem of .npy
    files."""
    run: Path = Path("runs/arrays")
    """Run folder; shards are written to RUN/shards."""
    layout: Layout = "auto"
    """Order of a frame's axes, where the sizes are ambiguous."""
    scale: Annotated[float, Range(above=0, high=10**6)] = 1.0
    """Factor to 0..255, for frames stored as fractions."""
    frames_key: str = ""
    """Name of the array of frames in the files, such as obs/agentview_image."""
    rename: tuple[str, ...] = ()
    """STORED=FIELD for arrays of other names, such as reward=rewards; STORED= leaves one aside."""
    state_names: tuple[str, ...] = ()
    """Names of the numbers of a state, in their order, such as x y angle: what ends in angle is
    one, in radians. By default they are numbered, and none is an angle."""
    alignment: Alignment = "next"
    """Whether actions[t] leads from frames[t] to the next, or led from the previous to it."""
    actions: ActionKind = "auto"
    """What actions are: codes (whole numbers, or a vector of them), one-hot rows of one code, or
    continuous numbers; by default what they look like, which is printed."""
    low: Annotated[tuple[float, ...], Range()] = ()
    """Lower limit of each dimension of continuous actions, or one for all; by default the smallest
    in the data."""
    high: Annotated[tuple[float, ...], Range()] = ()
    """Upper limit of each dimension, or one for all; by default the greatest in the data."""
    num_codes: Annotated[tuple[int, ...], Range(1, MAX_CODES)] = ()
    """Number of codes, also of those that do not occur; one for each number of a vector."""
    resolution: Annotated[int, Range(MIN_SIDE, MAX_SIDE, or_zero=True)] = 0
    """Height and width that frames are averaged to, in pixels; 0 leaves them as they are."""
    like: Path | None = None
    """Run folder of another session of the same world, whose action space this one gets."""
    seed: Annotated[int, Range(0, MAX_SEED)] = 0
    """Seed of the splits."""
    num_workers: Annotated[int, Range(1, MAX_WORKERS)] = available_cpus()
    """Processes; the shards do not depend on it."""
    live: Annotated[int, Range(0, 65535)] = 0
    """Port of a page that follows it at 127.0.0.1; 0 is no page."""
    restart: bool = False
    """Delete existing shards and start over."""


def arrays_source(config: ArraysConfig) -> ArraySource:
    """Open the arrays; ValueError for what cannot be imported."""
    return ArraySource(
        str(config.path),
        config.layout,
        config.scale,
        frames_key=config.frames_key,
        rename=config.rename,
        alignment=config.alignment,
        actions=ActionOptions(
            config.actions, config.low, config.high, config.num_codes, _actions_of(config)
        ),
        state_names=config.state_names,
        resolution=config.resolution,
    )


def _actions_of(config: ArraysConfig) -> ActionSpec | None:
    """Return the action space of the run that --like names."""
    if config.like is None:
        return None
    if config.low or config.high or config.num_codes:
        raise ValueError("--like gives the action space; leave out --low, --high and --num-codes")
    try:
        return EpisodeDataset(shards_folder(config.like)).actions
    except ValueError as problem:
        raise ValueError(f"--like: {problem}") from None
