"""The controller's contract: a state of a world, and perhaps a goal, to an action."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Protocol

from torch import Tensor

from data.batch import Batch
from models.dynamics.dynamics import State
from models.method import Losses, TrainableModule
from models.tokenizers.codes import HasCodebooks


class Controller(Protocol):
    """Acts in a world, for B states at a time: policies, goal policies and planners."""

    def reset(self) -> None:
        """Begin new episodes: forget what was planned."""
        ...

    def act(self, state: State, goal: Tensor | None = None) -> Tensor:
        """Give an action in the environment's units, (B, A) or (B,).

        goal: latents to reach, (B, N) or (B, P, D); only some controllers take one.
        """
        ...


class TrainedController(TrainableModule, ABC):
    """What every trained controller is to the stage that fits it.

    Its loss takes a Batch, and the world it imagines in where it needs one.
    """

    def load_codebook(self, source: HasCodebooks) -> None:
        """Take over the vectors of the tokenizer's codes."""

    def reset(self) -> None:
        """Begin new episodes; by default nothing is remembered."""

    def begin(self, sample: Batch) -> None:
        """Take scales from a sample of the training data, before the first step."""

    @abstractmethod
    def loss(self, *args: Any, **kwargs: Any) -> Losses:
        """Named terms."""

    def validate(self, held_out: Batch, *inputs: Any) -> dict[str, float]:
        """Metrics on held-out data, `best.metric` among them: by default the loss's terms."""
        return {name: float(value) for name, value in self.loss(held_out, *inputs).items()}
