"""An action space that describes itself, and travels in shards and checkpoints."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

Codes = TypeVar("Codes", Tensor, np.ndarray)


@dataclass(frozen=True)
class Factor:
    """One of the independent choices that a code stands for, such as a key or a turn."""

    name: str
    labels: tuple[str, ...]
    """What can be chosen."""
    values: tuple[float, ...] = ()
    """What each label stands for, where that is a number."""


@dataclass(frozen=True)
class ActionSpec:
    """What one action means.

    Continuous actions are float vectors of `len(names)` numbers between `low` and `high`;
    discrete ones are a code, an int64 in [0, size): one of `names`, or a choice of each of
    `factors`, the first of which turns the fastest.
    """

    kind: Literal["continuous", "discrete"]
    names: tuple[str, ...]
    """Names of the dimensions (continuous) or of the codes (discrete without factors)."""
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    unit: str = ""
    pointer: bool = False
    """The first two dimensions are a point of the frame: `low` is its left and top edge, `high`
    its right and bottom one. A window can then be steered with the mouse, and a model can see
    where the point lies from each patch."""
    factors: tuple[Factor, ...] = ()
    """Choices that a discrete code is made of; none where its codes are simply named."""

    def __post_init__(self) -> None:
        if self.kind == "continuous" and not len(self.low) == len(self.high) == len(self.names):
            raise ValueError(
                f"an action has {len(self.names)} names, {len(self.low)} lower and "
                f"{len(self.high)} upper limits; give one of each for every dimension"
            )

    @property
    def size(self) -> int:
        """Numbers in an action (continuous) or codes to choose from (discrete)."""
        return math.prod(self.factor_sizes) if self.factors else len(self.names)

    @property
    def factor_sizes(self) -> tuple[int, ...]:
        return tuple(len(factor.labels) for factor in self.factors)

    def unravel(self, codes: Codes) -> Codes:
        """(...) codes -> (..., F) choices of each factor."""
        choices: list[Any] = []
        rest: Any = codes
        for size in self.factor_sizes:
            choices.append(rest % size)
            rest = rest // size
        stack: Any = torch.stack if isinstance(codes, Tensor) else np.stack
        return stack(choices, -1)

    def ravel(self, choices: Codes) -> Codes:
        """(..., F) choices -> (...) codes: undoes `split`."""
        codes: Any = choices[..., 0]
        stride = 1
        for number, size in enumerate(self.factor_sizes[:-1], 1):
            stride *= size
            codes = codes + stride * choices[..., number]
        return codes

    def describe(self, code: int) -> str:
        """Name a code in words, without the choices that are the first of their factor or 0."""
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
        """Shape of one action: (A,) or ()."""
        return (self.size,) if self.kind == "continuous" else ()

    def normalize(self, actions: Tensor) -> Tensor:
        """(..., A) in the environment's units -> (..., A) in [-1, 1]; codes stay as they are."""
        if self.kind == "discrete":
            return actions
        low, high = _row(self.low, actions), _row(self.high, actions)
        return (actions - low) / (high - low) * 2 - 1

    def denormalize(self, actions: Tensor) -> Tensor:
        """(..., A) in [-1, 1] -> (..., A) in the environment's units; codes stay as they are."""
        if self.kind == "discrete":
            return actions
        low, high = _row(self.low, actions), _row(self.high, actions)
        return (actions + 1) / 2 * (high - low) + low

    def sample(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Draw `count` actions uniformly: (count, A) float32, or (count,) int64."""
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
                    f"{ours} and {theirs} have different action spaces: {field} is {a!r} in "
                    f"the first and {b!r} in the second; use recordings and "
                    f"checkpoints of one world"
                )

    def as_dict(self) -> dict[str, Any]:
        """Give plain values for HDF5 attributes and checkpoints."""
        values = _plain(asdict(self))
        if not self.factors:
            del values["factors"]  # shards from before there were factors say nothing of them
        return values

    @staticmethod
    def from_dict(values: dict[str, Any]) -> ActionSpec:
        plain: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
        }
        factors = (
            Factor(f["name"], tuple(f["labels"]), tuple(f["values"]))
            for f in values.get("factors", ())
        )
        plain["factors"] = tuple(factors)
        return ActionSpec(**plain)


def _row(values: tuple[float, ...], like: Tensor) -> Tensor:
    """(A,), filled in where `like` lies: to copy there is to wait, which no CUDA graph records."""
    return torch.stack([like.new_full((), value) for value in values])


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, tuple) else value


def as_tensor(actions: np.ndarray) -> Tensor:
    """Give float32 for continuous actions and int64 for codes."""
    tensor = torch.from_numpy(np.ascontiguousarray(actions))
    return tensor.float() if tensor.is_floating_point() else tensor.long()
