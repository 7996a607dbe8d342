"""The action space of imported arrays: codes, one-hot rows, vectors of codes, or numbers.

Letters: T steps, A numbers of an action.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from data.actions import ActionSpec, Factor
from data.arrays.action_survey import Survey, survey
from data.formats.raw_episodes import RawEpisodes
from data.io.messages import first_few

MAX_CODES = 2**16
MAX_CHOICES = 32  # of a dimension of whole numbers, above which they are taken for a quantity
FAR = 5.0  # times the range of 99.8% of the values, at which the extremes take most of it
MANY_OUTSIDE = 0.05  # fraction of the values, at which a given range is hardly meant
ActionKind = Literal["auto", "codes", "one-hot", "continuous"]
Form = Literal["none", "codes", "one-hot", "continuous"]


@dataclass(frozen=True)
class ActionOptions:
    """What only the user can know of the actions; what is not given is taken from the data."""

    kind: ActionKind = "auto"
    low: tuple[float, ...] = ()
    """Lower limit of each dimension, or one for all."""
    high: tuple[float, ...] = ()
    num_codes: tuple[int, ...] = ()
    """Number of codes: of each dimension where an action is a vector of them."""
    spec: ActionSpec | None = None
    """The action space of another session of the same world."""


FROM_THE_DATA = ActionOptions()


@dataclass(frozen=True)
class ActionReader:
    """How stored actions become those of an episode."""

    spec: ActionSpec
    form: Form

    def convert(self, values: np.ndarray) -> np.ndarray | None:
        """(T,) or (T, A) as stored -> (T,) int64 or (T, A) float32; None without actions.

        Numbers outside of the range are clipped to it.
        """
        if self.form == "none":
            return None
        if self.form == "continuous":
            rows = values.reshape(len(values), -1).astype(np.float32)
            low, high = (np.array(v, np.float32) for v in (self.spec.low, self.spec.high))
            return np.clip(rows, low, high)
        if self.form == "one-hot":
            return values.argmax(1).astype(np.int64)
        codes = values.astype(np.int64)
        if codes.ndim == 1:
            return codes
        return self.spec.ravel(codes) if self.spec.factors else codes[:, 0]


def read_actions(raw: RawEpisodes, options: ActionOptions) -> tuple[ActionReader, list[str]]:
    """Find the action space, and say in lines what was taken for what.

    ValueError names the episode that does not fit, or the options that do not.
    """
    spec = options.spec
    if "actions" not in raw.keys:
        if options != FROM_THE_DATA and not (spec and spec.kind == "none"):
            raise ValueError(f"{raw.location(0)} has no actions, but options were given for them")
        return ActionReader(ActionSpec("none", ()), "none"), []
    if spec and spec.kind == "none":
        raise ValueError(
            f"{raw.location(0)} has actions, but the run of --like has none; leave them aside with "
            f"--rename actions="
        )
    seen = survey(raw)
    form = _form(raw, seen, options)
    if form == "continuous":
        if options.num_codes:
            raise ValueError("--num-codes is for codes, but the actions are continuous")
        reader = ActionReader(spec or _ranges(raw, seen, options), form)
        lines = [_describe_numbers(seen, reader.spec, guessed=options.kind == "auto" and not spec)]
        lines += _describe_extremes(raw, seen, reader.spec, given=bool(spec or options.low))
        return reader, lines
    if options.low or options.high:
        raise ValueError("--low and --high are for continuous actions, but these are codes")
    spec = spec or _codes(raw, seen, form, options)
    _check_codes(raw, seen, form, spec)
    return ActionReader(spec, form), [_describe_codes(seen, form, spec)]


def _form(raw: RawEpisodes, seen: Survey, options: ActionOptions) -> Form:
    """Return how the stored numbers are to be read: as asked, as the run of --like, or as looks
    most likely."""
    what = f"{raw.location(0)} has actions of {seen.dtype} {seen.shape} a step"
    kind = options.kind
    if kind == "auto" and options.spec is not None:
        kind = "continuous" if options.spec.kind == "continuous" else "codes"
        if kind == "codes" and seen.one_hot and not options.spec.factors:
            kind = "one-hot"
    if kind == "auto" and options.low and options.high:
        kind = "continuous"
    if kind == "auto":
        if seen.one_hot:
            kind = "one-hot"
        elif seen.dtype.kind in "biu":
            kind = "codes" if len(seen.shape) == 0 or _look_like_codes(seen) else "continuous"
        elif len(seen.shape) == 0:
            raise ValueError(
                f"{what}; say whether they are codes or a quantity: --actions codes, or --actions "
                f"continuous"
            )
        else:
            kind = "continuous"
    if kind == "one-hot":
        if not seen.one_hot:
            raise ValueError(f"{what}, and not all rows hold a single one; correct --actions")
        if seen.zero_row is not None:
            raise ValueError(
                f"{raw.location(seen.zero_row)} begins with an action of zeros, which is no code; "
                f"where actions led to their frame give --alignment previous, else --actions "
                f"continuous"
            )
    if kind == "codes" and not seen.whole:
        raise ValueError(f"{what}, which are not all whole; correct --actions codes")
    return kind


def _look_like_codes(seen: Survey) -> bool:
    """Vectors of whole numbers are taken for codes where they are few."""
    sizes = [int(size) + 1 for size in seen.high]
    return min(seen.low) >= 0 and max(sizes) <= MAX_CHOICES and math.prod(sizes) <= MAX_CODES


def _codes(raw: RawEpisodes, seen: Survey, form: Form, options: ActionOptions) -> ActionSpec:
    dims = 1 if form == "one-hot" else len(seen.high)
    given = options.num_codes
    if given and len(given) != dims:
        raise ValueError(f"--num-codes has {len(given)} numbers, but an action has {dims} codes")
    if form == "one-hot":
        sizes = [seen.shape[0]]
        if given and given[0] != sizes[0]:
            raise ValueError(f"--num-codes {given[0]}, but one-hot rows have {sizes[0]} numbers")
    else:
        sizes = list(given) or [int(size) + 1 for size in seen.high]
        for dim in range(dims):
            if seen.low[dim] < 0 or (not given and seen.high[dim] >= MAX_CODES):
                low = seen.low[dim] < 0
                number, value = (
                    (seen.lowest[dim], seen.low[dim])
                    if low
                    else (seen.highest[dim], seen.high[dim])
                )
                raise ValueError(
                    f"{raw.location(int(number))} has the action code {int(value)}; codes start at "
                    f"0 and end below {MAX_CODES}: renumber them, or give --actions continuous"
                )
    if math.prod(sizes) > MAX_CODES:
        raise ValueError(
            f"{raw.location(0)} has actions of {first_few(sizes, separator=' x ')} codes, and at "
            f"most {MAX_CODES} are possible; give --actions continuous"
        )
    if dims > 1:
        return ActionSpec(
            "discrete",
            (),
            factors=tuple(Factor(f"action_{i}", _labels(n)) for i, n in enumerate(sizes)),
        )
    return ActionSpec("discrete", _labels(sizes[0]))


def _check_codes(raw: RawEpisodes, seen: Survey, form: Form, spec: ActionSpec) -> None:
    """Refuse codes beyond those of a given action space."""
    if form == "one-hot":
        sizes: Sequence[int] = (spec.size,)
        found = [seen.shape[0] - 1]
    else:
        found = [int(value) for value in seen.high]
        vectors = len(found) > 1
        sizes = spec.factor_sizes if vectors else (spec.size,)
    if len(sizes) != len(found):
        raise ValueError(
            f"{raw.location(0)} has actions of {len(found)} codes, but {len(sizes) or 1} are "
            f"expected; correct --like, --num-codes or --actions"
        )
    for dim, (size, code) in enumerate(zip(sizes, found, strict=True)):
        if code >= size or seen.low[dim] < 0:
            number, value = seen.highest[dim], seen.high[dim]
            if seen.low[dim] < 0:
                number, value = seen.lowest[dim], seen.low[dim]
            raise ValueError(
                f"{raw.location(int(number))} has the action code {int(value)}, and codes go from "
                f"0 to {size - 1}; correct --like or --num-codes"
            )


def _ranges(raw: RawEpisodes, seen: Survey, options: ActionOptions) -> ActionSpec:
    dims = len(seen.low)
    low, high = (np.array(values, np.float64) for values in (seen.low, seen.high))
    if bool(options.low) != bool(options.high):
        raise ValueError("give both --low and --high, the limits of continuous actions, or none")
    if options.low:
        limits = []
        for flag, values in (("--low", options.low), ("--high", options.high)):
            if len(values) not in (1, dims):
                raise ValueError(
                    f"{flag} has {len(values)} numbers, but an action has {dims}; give one for "
                    f"each, or one for all"
                )
            limits.append(np.broadcast_to(np.array(values, np.float64), dims))
        low, high = limits
        if (low >= high).any():
            dim = int(np.argmax(low >= high))
            raise ValueError(f"--low {low[dim]:g} must be below --high {high[dim]:g}")
    else:
        still = np.spacing(np.maximum(abs(low), abs(high)).astype(np.float32)) * 4
        # a dimension that never changes needs a width too
        high = np.where(high > low, high, low + np.maximum(1, still))
    names = tuple(f"action_{i}" for i in range(dims))
    return ActionSpec("continuous", names, tuple(map(float, low)), tuple(map(float, high)))


def _describe_extremes(
    raw: RawEpisodes, seen: Survey, spec: ActionSpec, given: bool
) -> Iterator[str]:
    """Count what lies outside of a given range; warn of a range that few values set."""
    if len(spec.low) != len(seen.low):
        raise ValueError(
            f"{raw.location(0)} has actions of {len(seen.low)} numbers, and the run of --like of "
            f"{len(spec.low)}; use recordings of one world"
        )
    for dim, (low, high) in enumerate(zip(spec.low, spec.high, strict=True)):
        least, greatest = float(seen.low[dim]), float(seen.high[dim])
        values = seen.sample[:, dim].astype(np.float64)
        if given:
            outside = ((values < low) | (values > high)).mean()
            if outside or least < low or greatest > high:
                warning = "warning: " if outside > MANY_OUTSIDE else ""
                yield (
                    f"{warning}{outside:.2%} of {spec.names[dim]} lie outside of {low:g} to "
                    f"{high:g}, from {least:.6g} to {greatest:.6g}; they are clipped to it"
                )
            continue
        usual_low = float(np.quantile(values, 0.001, method="higher"))
        usual_high = float(np.quantile(values, 0.999, method="lower"))
        if usual_high > usual_low and greatest - least > FAR * (usual_high - usual_low):
            number = seen.highest[dim]
            if usual_low - least > greatest - usual_high:
                number = seen.lowest[dim]
            yield (
                f"warning: {spec.names[dim]} goes from {least:.6g} to {greatest:.6g}, but 99.8% of "
                f"its values from {usual_low:.6g} to {usual_high:.6g}, which are then hardly told "
                f"apart; look at {raw.location(int(number))}, or give --low and --high"
            )


def _describe_codes(seen: Survey, form: Form, spec: ActionSpec) -> str:
    shape = f"(T, {seen.shape[0]})" if seen.shape else "(T,)"
    other = "--actions continuous if they are a quantity"
    if form == "one-hot":
        return f"actions: one-hot rows {shape}, taken as {spec.size} codes; {other}"
    if len(seen.shape) == 1 and seen.shape[0] > 1:
        sizes = first_few(spec.factor_sizes, separator=" x ")
        return f"actions: whole numbers {shape}, taken as {sizes} choices; {other}"
    column = "a column of " if seen.shape else ""
    return f"actions: {column}whole numbers {shape}, taken as codes 0 to {spec.size - 1}; {other}"


def _describe_numbers(seen: Survey, spec: ActionSpec, guessed: bool) -> str:
    shape = f"(T, {seen.shape[0]})" if seen.shape else "(T,)"
    spans = (f"{low:.4g} to {high:.4g}" for low, high in zip(spec.low, spec.high, strict=True))
    line = f"actions: {seen.dtype} {shape}, taken as continuous, from {first_few(spans)}"
    whole = seen.whole and seen.low.min() >= 0 and 0 < seen.high.max() < MAX_CODES
    if guessed and whole:
        line += "; all are whole: --actions codes if they are codes"
    return line


def _labels(count: int) -> tuple[str, ...]:
    return tuple(str(code) for code in range(count))
