"""The controller's contract: a state of a world, and perhaps a goal, to an action."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Protocol

from torch import Tensor

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

    @abstractmethod
    def loss(self, *args: Any, **kwargs: Any) -> Losses:
        """Named terms."""
