"""An action space that describes itself, and travels in shards and checkpoints."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class ActionSpec:
    """What one action means.

    Continuous actions are float vectors of `len(names)` numbers between `low` and `high`;
    discrete ones are a code, an int64 in [0, len(names)).
    """

    kind: Literal["continuous", "discrete"]
    names: tuple[str, ...]
    """Names of the dimensions (continuous) or of the codes (discrete)."""
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    unit: str = ""
    pointer: bool = False
    """The first two dimensions are a point of the frame: `low` is its left and top edge, `high`
    its right and bottom one. A window can then be steered with the mouse, and a model can see
    where the point lies from each patch."""

    def __post_init__(self) -> None:
        if self.kind == "continuous" and not len(self.low) == len(self.high) == len(self.names):
            raise ValueError(
                f"an action has {len(self.names)} names, {len(self.low)} lower and "
                f"{len(self.high)} upper limits; give one of each for every dimension"
            )

    @property
    def size(self) -> int:
        """Numbers in an action (continuous) or codes to choose from (discrete)."""
        return len(self.names)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one action: (A,) or ()."""
        return (self.size,) if self.kind == "continuous" else ()

    def normalize(self, actions: Tensor) -> Tensor:
        """(..., A) in the environment's units -> (..., A) in [-1, 1]; codes stay as they are."""
        if self.kind == "discrete":
            return actions
        low, high = actions.new_tensor(self.low), actions.new_tensor(self.high)
        return (actions - low) / (high - low) * 2 - 1

    def denormalize(self, actions: Tensor) -> Tensor:
        """(..., A) in [-1, 1] -> (..., A) in the environment's units; codes stay as they are."""
        if self.kind == "discrete":
            return actions
        low, high = actions.new_tensor(self.low), actions.new_tensor(self.high)
        return (actions + 1) / 2 * (high - low) + low

    def sample(self, count: int, random: np.random.Generator) -> np.ndarray:
        """Draw `count` actions uniformly: (count, A) float32, or (count,) int64."""
        if self.kind == "discrete":
            return random.integers(0, self.size, count)
        return random.uniform(self.low, self.high, (count, self.size)).astype(np.float32)

    def check_same(self, other: ActionSpec, ours: str, theirs: str) -> None:
        """Raise ValueError naming the first field in which two action spaces differ."""
        mine, their = self.as_dict(), other.as_dict()
        for field, value in mine.items():
            if value != their[field]:
                raise ValueError(
                    f"{ours} and {theirs} have different action spaces: {field} is {value!r} in "
                    f"the first and {their[field]!r} in the second; use recordings and "
                    f"checkpoints of one world"
                )

    def as_dict(self) -> dict[str, Any]:
        """Give plain values for HDF5 attributes and checkpoints."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @staticmethod
    def from_dict(values: dict[str, Any]) -> ActionSpec:
        plain: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
        }
        return ActionSpec(**plain)


def as_tensor(actions: np.ndarray) -> Tensor:
    """Give float32 for continuous actions and int64 for codes."""
    tensor = torch.from_numpy(np.ascontiguousarray(actions))
    return tensor.float() if tensor.is_floating_point() else tensor.long()
