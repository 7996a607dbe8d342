"""Runners raced against each other in one process, round by round, and what comes of it.

A round runs everyone once, so that whatever else the machine does hits all alike; the ratio is the
median over rounds of theirs over ours, with a bootstrap interval.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

# seconds of each unit of time; every other unit is an amount a second
TIME_UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6}
NO_BASELINE = "(nobody publishes one)"
EXACT, INT8 = "exact weights", "int8 weights"


class Incorrect(ValueError):
    """A runner's answer is not the definition's: no time is printed where it fails."""


@dataclass(frozen=True)
class Options:
    """What every area is told."""

    rounds: int = 10
    """Rounds of a race."""
    quick: bool = False
    """Smaller sizes, so that all areas take minutes on two slow cores."""
    device: torch.device = torch.device("cpu")  # noqa: RUF009 (a device is never changed)
    run: Path | None = None
    """A run to play, instead of what comes with the project."""
    threads: int = 1
    """Threads of PyTorch."""
    tune: bool = False
    """Write what kernels measured into kernels/tuned.json."""
    only: tuple[str, ...] = ()
    """Of kernels, these operations; all if none is named."""


@dataclass(frozen=True)
class Row:
    """One line of the table: ours against one peer, or a value that nobody else publishes."""

    area: str
    name: str
    baseline: str
    """The peer; for a bare value, NOBODY or what it is a share of."""
    unit: str
    """Of `ours` and `theirs`: s, ms, us, or an amount such as frames/s, GB/s, %."""
    ours: float | None = None
    theirs: float | None = None
    ratio: float | None = None
    """How many times better ours is (over 1: ours is faster); None for a bare value."""
    low: float | None = None
    high: float | None = None
    """95% bootstrap interval of the ratio."""
    rounds: int = 0
    target: float | None = None
    stretch: float | None = None
    """What the ratio has to reach and would ideally; without a ratio, what `ours` has to."""
    note: str = ""

    @property
    def passed(self) -> bool | None:
        """True where the bar is reached, None where there is no bar or nothing was measured."""
        seen = self.ours if self.ratio is None else self.ratio
        if self.target is None or seen is None:
            return None
        less = self.ratio is None and self.unit in TIME_UNITS
        return seen <= self.target if less else seen >= self.target

    @property
    def failed(self) -> bool:
        """True where ours is wrong, or broke: nothing was measured, and no peer is why."""
        return self.ours is None and not self.baseline


def drop_broken(runners: dict[str, Callable[[], Any]]) -> dict[str, str]:
    """Run everyone once; who cannot is taken out, and says why: the others are raced."""
    reasons = {}
    for name, runner in list(runners.items()):
        try:
            runner()
        except Exception as problem:
            reasons[name] = reason(problem)
            del runners[name]
    return reasons


def reason(problem: Exception) -> str:
    """What broke, in one line."""
    return f"{type(problem).__name__}: {' '.join(str(problem).split())[:200]}"


def race(
    runners: Mapping[str, Callable[[], object]],
    rounds: int = 10,
    warmup: int = 2,
    device: torch.device | None = None,
    repeats: int = 1,
) -> dict[str, list[float]]:
    """Run everyone once a round, the first of the round being another each time.

    `repeats`: calls of a runner in its turn, for what is too short for the clock.  Returns the
    seconds of one call, a list over rounds for each name.
    """
    names = list(runners)
    for name in names:
        for _ in range(warmup):
            runners[name]()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            seconds[name].append(time_call(runners[name], device, repeats))
    return seconds


def time_call(runner: Callable[[], object], device: torch.device | None, repeats: int = 1) -> float:
    """Seconds of one of `repeats` calls, until the GPU is done with them."""
    on_gpu = device is not None and device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    for _ in range(repeats):
        runner()
    if on_gpu:
        torch.cuda.synchronize(device)
    return (time.perf_counter() - start) / repeats


def compare(
    area: str,
    what: str,
    seconds: Mapping[str, Sequence[float]],
    targets: Mapping[str, tuple[float | None, float | None]],
    ours: str = "ours",
    unit: str = "ms",
    amount: float = 1.0,
    notes: Mapping[str, str] | None = None,
) -> list[Row]:
    """One row for each peer of a race, with its bar and aim where `bars` names it.

    `amount`: what one call does, in the unit's own things, where the unit is an amount a second.
    """
    rows = []
    for peer, theirs in seconds.items():
        if peer == ours:
            continue
        ratio, low, high = paired_ratio(theirs, seconds[ours])
        target, stretch = targets.get(peer, (None, None))
        rows.append(
            Row(
                area, what, peer, unit,
                ours=_in_unit(seconds[ours], unit, amount),
                theirs=_in_unit(theirs, unit, amount),
                ratio=ratio, low=low, high=high, rounds=len(theirs), target=target, stretch=stretch,
                note=(notes or {}).get(peer, ""),
            )
        )  # fmt: skip
    return rows


def paired_ratio(
    theirs: Sequence[float], ours: Sequence[float], num_resamples: int = 2000
) -> tuple[float, float, float]:
    """Median of theirs over ours, round by round, and its 95% bootstrap interval."""
    ratios = np.asarray(theirs) / np.asarray(ours)
    rng = np.random.default_rng(0)
    drawn = np.median(rng.choice(ratios, (num_resamples, len(ratios))), axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(np.median(ratios)), float(low), float(high)


def value_row(
    area: str,
    what: str,
    unit: str,
    measured: float,
    baseline: str = NO_BASELINE,
    target: float | None = None,
    stretch: float | None = None,
    rounds: int = 0,
    note: str = "",
) -> Row:
    """A row of something that has no peer: a rate, or a share of a ceiling in %."""
    return Row(
        area,
        what,
        baseline,
        unit,
        ours=measured,
        rounds=rounds,
        target=target,
        stretch=stretch,
        note=note,
    )


def missing_row(area: str, what: str, baseline: str, install: str) -> Row:
    """A row that says how to get a peer that is not here; `install`: what pip is given."""
    return Row(area, what, baseline, "", note=f"not measured: pip install {install}")


def _in_unit(seconds: Sequence[float], unit: str, amount: float) -> float:
    middle = float(np.median(np.asarray(seconds)))
    return middle / TIME_UNITS[unit] if unit in TIME_UNITS else amount / middle
