"""Ranges of the numbers in a config, checked wherever one is made: by flags, presets or code.

    @dataclass(frozen=True)
    class TrainConfig(CheckedConfig):
        learning_rate: Annotated[float, Range(above=0, high=10)] = 1e-3
        horizons: Annotated[tuple[int, ...], Range(1, 1000), NonEmpty()] = (1, 2, 4)

A message names the field as a flag of its own config, such as --learning-rate; pipeline/cli.py
makes it the flag of the command line, --train.learning-rate.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields
from functools import cache
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

MAX_SEED = 2**32 - 1  # of NumPy's generators
MAX_STEPS = 10**9
MAX_WORKERS = 1024  # processes of one kind on one machine
MIN_SIDE, MAX_SIDE = 16, 1024  # pixels of a frame's side
# here, not in pipeline/device.py: that imports torch, which a config does without
DeviceOption = Literal["auto", "cpu", "mps", "cuda"]
PrecisionOption = Literal["auto", "bf16", "fp16", "fp32"]


@dataclass(frozen=True)
class Range:
    """Bounds of a number, or of each number of a tuple; one that is not finite is never inside."""

    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None
    or_zero: bool = False
    """0 is inside too, with a meaning of its own."""

    def holds(self, value: float) -> bool:  # whether a number lies within
        if not math.isfinite(value):
            return False
        return (self.or_zero and value == 0) or (
            (self.low is None or value >= self.low)
            and (self.high is None or value <= self.high)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        """What a value must be, as in "above 0 and at most 10"."""
        if self.low is not None and self.high is not None:
            bounds = [f"between {self.low} and {self.high}"]
        else:
            bounds = [
                f"{word} {bound}"
                for word, bound in (
                    ("at least", self.low),
                    ("above", self.above),
                    ("at most", self.high),
                    ("below", self.below),
                )
                if bound is not None
            ]
        return ("0, or " if self.or_zero else "") + (" and ".join(bounds) or "finite")


@dataclass(frozen=True)
class NonEmpty:
    """A tuple that holds at least one value, and each only once."""


class CheckedConfig:
    """Base of a config: a dataclass that cannot be made of values that its fields refuse."""

    def __post_init__(self) -> None:
        if not _deferred.get():
            self.check()

    def check(self) -> None:
        """Raise ValueError for settings that are refused; extend it to compare fields."""
        check_ranges(self)


_deferred: ContextVar[bool] = ContextVar("checks of configs are deferred", default=False)


@contextmanager
def deferred_checks() -> Iterator[None]:
    """Make configs without their checks, for one who calls `check` on the last of them."""
    token = _deferred.set(True)
    try:
        yield
    finally:
        _deferred.reset(token)


def flag(name: str) -> str:
    """Return the flag of a field."""
    return "--" + name.replace("_", "-")


def check_ranges(config: Any) -> None:
    """Raise ValueError for the first field of a dataclass that is outside its range."""
    for name, (kind, marks) in _marked_fields(type(config)).items():
        value = getattr(config, name)
        if value is None:
            continue
        several = isinstance(value, tuple | list)
        for mark in marks:
            if isinstance(mark, NonEmpty):
                _check_non_empty(name, value)
            elif isinstance(mark, Range):
                for item in value if several else (value,):
                    _check_number(name, item, mark, whole=kind is int)


def _check_number(name: str, value: Any, bounds: Range, whole: bool) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        raise ValueError(f"{flag(name)} {value} is not a number; it must be {bounds}")
    if not bounds.holds(value):
        raise ValueError(f"{flag(name)} {value} is out of range; it must be {bounds}")
    if whole and value != int(value):
        raise ValueError(f"{flag(name)} {value} is not a whole number; it must be {bounds}")


def _check_non_empty(name: str, values: Any) -> None:
    if not values:
        raise ValueError(f"{flag(name)} is empty; give one or more")
    for index, value in enumerate(values):
        if value in values[:index]:
            raise ValueError(f"{flag(name)} has {value} twice; give each once")


@cache
def _marked_fields(config: type) -> dict[str, tuple[Any, tuple[Any, ...]]]:
    """The fields that have marks: the type of their numbers, and the marks."""
    hints = get_type_hints(config, include_extras=True)
    marked = {}
    for field in fields(config):
        hint = hints[field.name]
        if get_origin(hint) is not Annotated:
            continue
        kind, *marks = get_args(hint)
        inner = next((k for k in get_args(kind) if k is not type(None)), kind)  # tuple, optional
        marked[field.name] = inner, tuple(m for m in marks if isinstance(m, Range | NonEmpty))
    return marked
