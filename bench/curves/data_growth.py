"""What shards cost as they grow: to build, open, check and read, to begin and resume trainings.

Recordings are simulated once; larger folders hold them again and again, as sources of their own,
built like any other.  Each figure is of a process of its own, so its memory is its own.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from bench.curves.growth_table import Measured
from bench.curves.own_process import alone, run_stage
from data.checks.check import validate
from data.clips import Clips
from data.shards.build_shards import build
from data.shards.episode_dataset import EpisodeDataset
from data.shards.episodes import Episode
from data.shards.shard_header import STEP_FIELDS

PART = "times the recordings"
PRESET = ("keypoints", "debug")
CLIPS, CLIP_LENGTH, BATCHES = 64, 16, 40
STEPS = 20
STAGES = ("tokenizer", "dynamics")


@dataclass(frozen=True)
class Copies:
    """A source of the episodes of a folder of shards, each `times` times."""

    folder: Path
    times: int

    @cached_property
    def dataset(self) -> EpisodeDataset:
        return EpisodeDataset(self.folder)

    @property
    def num_shards(self) -> int:
        return len(self.dataset.headers) * self.times

    @property
    def num_sources(self) -> int:
        return len(self.dataset) * self.times

    def description(self) -> dict[str, Any]:
        kept = {k: v for k, v in self.dataset.description.items() if k != "format"}
        return kept | {"source": "copies", "settings": {"times": self.times}}

    def make_shard(self, index: int) -> list[Episode]:
        copy, shard = divmod(index, len(self.dataset.headers))
        ends = np.cumsum([0] + [len(header.episode_ends) for header in self.dataset.headers])
        numbers = range(int(ends[shard]), int(ends[shard + 1]))
        return [self._episode(number, copy * len(self.dataset) + number) for number in numbers]

    def _episode(self, number: int, source: int) -> Episode:
        fields = [name for name in STEP_FIELDS if self.dataset.has(name)]
        columns: dict[str, Any] = {name: self.dataset.read(number, name) for name in fields}
        return replace(Episode(**columns), source=source)


def measure(out: Path, episodes: int, times: tuple[int, ...], workers: int) -> Iterator[Measured]:
    """Grow the recordings of `episodes` scripted episodes of Push-T, in folders below `out`."""
    first = out / "x1"
    if first.exists():
        raise ValueError(
            f"{out} holds the shards of an earlier measurement, which would be read again; delete "
            f"it, or give another --out"
        )
    simulated, _ = run_stage(
        "preprocess pusht", first, "--preset", *PRESET, "--episodes", str(episodes),
        "--num-workers", str(workers),
    )  # fmt: skip
    frames = EpisodeDataset(first / "shards").num_frames
    yield Measured(PART, f"simulating, --num-workers {workers}, frames/s", 1, frames / simulated)
    for count in times:
        run = out / f"x{count}"
        for processes in dict.fromkeys((1, workers)):
            copied = out / "copies"
            shutil.rmtree(copied, ignore_errors=True)
            taken, _, _ = alone(_build, first / "shards", count, copied, processes)
            what = f"building, --num-workers {processes}, frames/s"
            yield Measured(PART, what, count, count * frames / taken)
        taken, _, memory = alone(_build, first / "shards", count, copied, workers)
        yield Measured(PART, "building, nothing is missing, s", count, taken)
        yield Measured(PART, "building, memory of the main process, MiB", count, memory)
        if count > 1:
            run.mkdir()
            copied.rename(run / "shards")
        yield from shard_costs(run / "shards", count)
        yield from _stages(run, count)


def shard_costs(folder: Path, count: int) -> Iterator[Measured]:
    opened, _, memory = alone(_open, folder)
    yield Measured(PART, "opening, s", count, opened)
    yield Measured(PART, "opening, memory, MiB", count, memory)
    checked, _, memory = alone(_check, folder)
    yield Measured(PART, "checking, s", count, checked)
    yield Measured(PART, "checking, memory, MiB", count, memory)
    _, rate, memory = alone(_read, folder)
    yield Measured(PART, f"reading from shards, clips of {CLIP_LENGTH} frames/s", count, rate)
    yield Measured(PART, "reading, memory, MiB", count, memory)


def _stages(run: Path, count: int) -> Iterator[Measured]:
    """Trainings of STEPS steps, and one more step of each that resumes."""
    for stage in STAGES:
        for what, steps in ((f"{STEPS} steps", STEPS), ("one step more", STEPS + 1)):
            taken, memory = run_stage(
                f"train_{stage}", run, "--preset", *PRESET, "--train.steps", str(steps),
                "--train.eval-every", str(STEPS), "--train.save-every", str(STEPS),
            )  # fmt: skip
            yield Measured(PART, f"{stage}, {what}, s", count, taken)
        yield Measured(PART, f"{stage}, memory, MiB", count, memory)


def _build(folder: Path, times: int, out: Path, processes: int) -> None:
    build(Copies(folder, times), out, "python -m bench.growth", num_workers=processes)


def _open(folder: Path) -> None:
    assert EpisodeDataset(folder).fingerprint


def _check(folder: Path) -> None:
    validate(EpisodeDataset(folder))


def _read(folder: Path) -> float:
    """Clips a second, in batches at random places: the median of BATCHES."""
    clips = Clips(EpisodeDataset(folder), "train", CLIP_LENGTH, memory_limit=0)
    draws = np.random.default_rng(0).integers(len(clips), size=(BATCHES, CLIPS))
    taken = []
    for indices in draws:
        begun = time.perf_counter()
        clips.batch(indices)
        taken.append(time.perf_counter() - begun)
    return CLIPS / median(taken)
