"""Race runners against each other in one process, round by round, and compare their times.

A round runs each of them once, so that other load on the machine hits all alike; the ratio is the
median over rounds of their time over ours, with a bootstrap interval.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

# seconds of each unit of time; every other unit is an amount per second
TIME_UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6}
NO_BASELINE = "(no published figure)"
EXACT, INT8 = "exact weights", "int8 weights"


class Incorrect(ValueError):
    """A runner's result differs from the definition's: it is not timed."""


@dataclass(frozen=True)
class Options:
    """The settings of every area."""

    rounds: int = 10
    """Rounds of a race."""
    quick: bool = False
    """Use smaller sizes, so that all areas take minutes on two slow cores."""
    device: torch.device = torch.device("cpu")  # noqa: RUF009 (a device is never changed)
    run: Path | None = None
    """The run to play, instead of the one in checkpoints/."""
    threads: int = 1
    """Threads of PyTorch."""
    tune: bool = False
    """Write the kernels' speedups into kernels/tuned.json."""
    only: tuple[str, ...] = ()
    """The operations of the area kernels; all if empty."""


@dataclass(frozen=True)
class Row:
    """One line of the table: ours against one peer, or a value without a peer."""

    area: str
    name: str
    baseline: str
    """The peer; for a value without one, NO_BASELINE or what it is a share of."""
    unit: str
    """Unit of `ours` and `theirs`: s, ms, us, or an amount such as frames/s, GB/s, %."""
    ours: float | None = None
    theirs: float | None = None
    ratio: float | None = None
    """How many times better ours is (over 1: ours is faster); None without a peer."""
    low: float | None = None
    high: float | None = None
    """95% bootstrap interval of the ratio."""
    rounds: int = 0
    target: float | None = None
    stretch: float | None = None
    """What the ratio has to reach, and would ideally; of `ours` where there is no ratio."""
    note: str = ""

    @property
    def passed(self) -> bool | None:
        """Whether the target is reached; None without a target or a measurement."""
        value = self.ours if self.ratio is None else self.ratio
        if self.target is None or value is None:
            return None
        lower_is_better = self.ratio is None and self.unit in TIME_UNITS
        return value <= self.target if lower_is_better else value >= self.target

    @property
    def failed(self) -> bool:
        """Whether ours is incorrect or failed: nothing was measured, and not for lack of a peer."""
        return self.ours is None and not self.baseline


def drop_broken(runners: dict[str, Callable[[], Any]]) -> dict[str, str]:
    """Run each runner once, and remove those that fail; return why, by name."""
    reasons = {}
    for name, runner in list(runners.items()):
        try:
            runner()
        except Exception as problem:
            reasons[name] = reason(problem)
            del runners[name]
    return reasons


def reason(problem: Exception) -> str:
    """Describe an error in one line."""
    return f"{type(problem).__name__}: {' '.join(str(problem).split())[:200]}"


def race(
    runners: Mapping[str, Callable[[], object]],
    rounds: int = 10,
    warmup: int = 2,
    device: torch.device | None = None,
    repeats: int = 1,
) -> dict[str, list[float]]:
    """Run each runner once a round; another one is first in each round.

    `repeats`: calls of a runner in its turn, for those too short for the clock.  Returns the
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
    """Return the seconds of one of `repeats` calls, until the GPU has finished them."""
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
    """Make one row for each peer of a race, with target and stretch where `targets` names it.

    `amount`: what one call does, where the unit is an amount per second.
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
    """Compute the median over rounds of theirs over ours, and its 95% bootstrap interval."""
    ratios = np.asarray(theirs) / np.asarray(ours)
    rng = np.random.default_rng(0)
    medians = np.median(rng.choice(ratios, (num_resamples, len(ratios))), axis=1)
    low, high = np.quantile(medians, [0.025, 0.975])
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
    """Make a row without a peer: a rate, or a share of a hardware limit in %."""
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
    """Make a row for a peer that is not installed; `install`: the arguments of pip."""
    return Row(area, what, baseline, "", note=f"not measured: pip install {install}")


def _in_unit(seconds: Sequence[float], unit: str, amount: float) -> float:
    middle = float(np.median(np.asarray(seconds)))
    return middle / TIME_UNITS[unit] if unit in TIME_UNITS else amount / middle
