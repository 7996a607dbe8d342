"""Description of an action space, stored in shards and checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

Codes = TypeVar("Codes", Tensor, np.ndarray)


@dataclass(frozen=True)
class Factor:
    """One independent choice in a discrete action, such as a key or a camera turn."""

    name: str
    labels: tuple[str, ...]
    """Names of its values."""
    values: tuple[float, ...] = ()
    """The number behind each label, where there is one."""


@dataclass(frozen=True)
class ActionSpec:
    """What one action means.

    Continuous actions are float vectors of `len(names)` numbers between `low` and `high`.
    Discrete ones are a code, an int64 in [0, size): one of `names`, or one choice for each of
    `factors`, the first of which varies fastest. "none" is for videos and images without actions:
    float vectors of no numbers.
    """

    kind: Literal["continuous", "discrete", "none"]
    names: tuple[str, ...]
    """Names of the dimensions (continuous) or of the codes (discrete without factors)."""
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    unit: str = ""
    pointer: bool = False
    """The first two dimensions are a point in the frame: `low` is its left and top edge, `high`
    its right and bottom edge. The mouse can then give actions, and a model can relate the point
    to each patch."""
    factors: tuple[Factor, ...] = ()
    """Factors of a discrete code; empty where each code has a name of its own."""

    def __post_init__(self) -> None:
        if self.kind == "continuous" and not len(self.low) == len(self.high) == len(self.names):
            raise ValueError(
                f"an action has {len(self.names)} names, {len(self.low)} lower and "
                f"{len(self.high)} upper limits; give one of each for every dimension"
            )
        for low, high in zip(self.low, self.high, strict=False):
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise ValueError(
                    f"an action has limits from {low} to {high}; give finite ones, the lower first"
                )
            with np.errstate(over="ignore"):
                span = np.float32(high) - np.float32(low)
            if not 0 < span < np.inf:
                raise ValueError(
                    f"an action has limits from {low} to {high}, which are too "
                    f"{'far apart' if span else 'close'} for float32; scale or shift the actions"
                )
        if self.kind == "discrete" and not self.size:
            raise ValueError("an action space of codes has none; give the names of one or more")
        if self.kind == "none" and (self.names or self.low or self.high or self.factors):
            raise ValueError(
                f"an action space of kind 'none' has no names, limits or factors, but these were "
                f"given: {(*self.names, *self.low, *self.high, *self.factors)}"
            )

    @property
    def size(self) -> int:
        """Numbers in an action (continuous), number of codes (discrete), or 0 (none)."""
        return math.prod(self.factor_sizes) if self.factors else len(self.names)

    @property
    def factor_sizes(self) -> tuple[int, ...]:  # choices of each factor
        return tuple(len(factor.labels) for factor in self.factors)

    def unravel(self, codes: Codes) -> Codes:
        """Split codes (...) into the choice of each factor (..., F)."""
        choices: list[Any] = []
        rest: Any = codes
        for size in self.factor_sizes:
            choices.append(rest % size)
            rest = rest // size
        stack: Any = torch.stack if isinstance(codes, Tensor) else np.stack
        return stack(choices, -1)

    def ravel(self, choices: Codes) -> Codes:
        """Join choices (..., F) into codes (...): the inverse of `unravel`."""
        codes: Any = choices[..., 0]
        stride = 1
        for number, size in enumerate(self.factor_sizes[:-1], 1):
            stride *= size
            codes = codes + stride * choices[..., number]
        return codes

    def describe(self, code: int) -> str:
        """Name a code in words, leaving out choices that are the first of their factor or 0."""
        if self.kind == "none":
            return "no actions"
        if not self.factors:
            return self.names[code]
        words = []
        for factor, choice in zip(self.factors, self.unravel(np.array(code)), strict=True):
            if factor.values and factor.values[choice] != 0:
                words.append(f"{factor.name} {factor.labels[choice]}")
            elif not factor.values and choice:
                words.append(factor.labels[choice])
        return "  ".join(words) or "nothing"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one action: (A,), () or (0,)."""
        return () if self.kind == "discrete" else (self.size,)

    def normalize(self, actions: Tensor) -> Tensor:
        """Map (..., A) in the environment's units to [-1, 1]; leave codes as they are."""
        if self.kind != "continuous":
            return actions
        low, high = _row(self.low, actions), _row(self.high, actions)
        return (actions - low) / (high - low) * 2 - 1

    def denormalize(self, actions: Tensor) -> Tensor:
        """Map (..., A) in [-1, 1] to the environment's units; leave codes as they are."""
        if self.kind != "continuous":
            return actions
        low, high = _row(self.low, actions), _row(self.high, actions)
        return (actions + 1) / 2 * (high - low) + low

    def empty(self, count: int, steps: int) -> Tensor:
        """Give (count, steps, A) zeros, or (count, steps) codes of 0, in the spec's own dtype."""
        dtype = torch.int64 if self.kind == "discrete" else torch.float32
        return torch.zeros(count, steps, *self.shape, dtype=dtype)

    def sample(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Draw `count` uniform actions: (count, A) float32, or (count,) int64."""
        if self.kind == "discrete":
            return rng.integers(0, self.size, count)
        return rng.uniform(self.low, self.high, (count, self.size)).astype(np.float32)

    def check_same(self, other: ActionSpec, ours: str, theirs: str) -> None:
        """Raise ValueError naming the first field in which two action spaces differ."""
        mine, their = self.as_dict(), other.as_dict()
        for field in sorted(mine.keys() | their.keys(), key=list({**mine, **their}).index):
            a, b = mine.get(field), their.get(field)
            if a != b:
                if field == "factors" and a and b and len(a) == len(b):
                    a, b = next((x, y) for x, y in zip(a, b, strict=True) if x != y)
                raise ValueError(
                    f"{ours} and {theirs} have different action spaces: {field} is {a!r:.100} "
                    f"in the first and {b!r:.100} in the second; use shards and checkpoints of "
                    f"one world"
                )

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for HDF5 attributes and checkpoints."""
        values = _plain(asdict(self))
        if not self.factors:
            del values["factors"]  # older shards and checkpoints do not have the key
        return values

    @staticmethod
    def from_dict(values: Any) -> ActionSpec:
        """Read what `as_dict` gave, of a shard or a checkpoint; ValueError where it is no spec."""
        plain = _known_fields(values, ActionSpec)
        plain["factors"] = tuple(
            Factor(**_known_fields(factor, Factor)) for factor in plain.get("factors", ())
        )
        return ActionSpec(**plain)


def _known_fields(values: Any, kind: type[ActionSpec | Factor]) -> dict[str, Any]:
    """Return the fields of `kind` in plain values, with tuples for lists; ValueError else."""
    if not isinstance(values, dict):
        raise ValueError(f"{str(values)[:40]} is no {kind.__name__}: it has no fields by name")
    known = {f.name: f for f in fields(kind)}
    for name in values:
        if name not in known:
            raise ValueError(
                f"the {kind.__name__} has the field {str(name)[:40]!r}, which this version does "
                f"not know; use the version that wrote it"
            )
    for name, field in known.items():
        if name not in values and field.default is MISSING:
            raise ValueError(f"the {kind.__name__} lacks the field {name!r}")
    for name, value in values.items():
        if not _FIELDS[name](value):
            raise ValueError(f"the {kind.__name__} has {name} {str(value)[:40]!r}")
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}


def _is_list_of(*kinds: type) -> Callable[[Any], bool]:
    def check(value: Any) -> bool:
        return isinstance(value, list | tuple) and all(type(item) in kinds for item in value)

    return check


_FIELDS: dict[str, Callable[[Any], bool]] = {
    "kind": lambda value: value in ("continuous", "discrete", "none"),
    "name": lambda value: isinstance(value, str),
    "names": _is_list_of(str),
    "labels": _is_list_of(str),
    "low": _is_list_of(int, float),
    "high": _is_list_of(int, float),
    "values": _is_list_of(int, float),
    "unit": lambda value: isinstance(value, str),
    "pointer": lambda value: isinstance(value, bool),
    "factors": _is_list_of(dict),
}


def _row(values: tuple[float, ...], like: Tensor) -> Tensor:
    """Fill (A,) on the device of `like`: a copy would synchronize, which CUDA graphs forbid."""
    return torch.stack([like.new_full((), value) for value in values])


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, tuple) else value


def as_tensor(actions: np.ndarray) -> Tensor:
    """Convert continuous actions to float32 and codes to int64."""
    tensor = torch.from_numpy(np.ascontiguousarray(actions))
    return tensor.float() if tensor.is_floating_point() else tensor.long()
