"""What the model is asked, and what it answers: arrays, one row a request.

Letters: B rows, k steps, P patches, D width, E numbers of a pooled latent, A action numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

JobKind = Literal["encode", "predict", "decode", "plan"]
Group = tuple[JobKind, bool]
"""Jobs of one group share a batch: kind, whether z_cls is all that is given."""


@dataclass(frozen=True)
class Work:
    """One request."""

    kind: JobKind
    input: np.ndarray
    """A frame (3, H, W) uint8, two of them (2, 3, H, W) for a plan, or latents: (E,) or (P, D)."""
    actions: np.ndarray | None = None
    """(k, A) float32, of a prediction."""
    patches: bool = False
    """Whether the answer needs (P, D), too."""
    steps: int = 0
    rollouts: int = 0
    seed: int = 0
    """Of a plan."""

    @property
    def group(self) -> Group:
        return self.kind, self.input.ndim == 1

    @property
    def units(self) -> int:
        """How much it is among those of its group: the steps that are predicted, else 1."""
        if self.actions is not None:
            return len(self.actions)
        return self.steps * self.rollouts if self.kind == "plan" else 1


@dataclass(frozen=True)
class Done:
    """Its answer."""

    pooled: np.ndarray
    """(E,), or (k, E); of a plan (T, A); of a decoded image (3, H, W) uint8."""
    patches: np.ndarray | None = None
    """(P, D), or (k, P, D)."""
    moved: np.ndarray | None = None
    """(k,) distances to the prediction of a start that is moved by noise; None where that was not
    measured."""
    cost: float = 0.0
    start_cost: float | None = None


Told = Callable[[dict[int, Done]], None]
"""Takes answers as they come, by their numbers in the batch."""


class ModelProblem(Exception):
    """A request that this run refuses, in one line."""
