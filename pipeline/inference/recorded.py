"""Steps and searches of a world as CUDA graphs: what is started once a frame is one thing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from models.dynamics.dynamics import State
from models.world import World
from pipeline.graphed import Graphed
from pipeline.pytree import put_together, taken_apart


class Recorded:
    """A function of states, tensors and None that is recorded anew for every shape they come in.

    It has to be a function: what it gives depends on what it is given, and nothing else changes.
    """

    def __init__(self, function: Callable[..., Any], device: torch.device) -> None:
        self.function, self.device = function, device
        self._known: dict[str, tuple[Graphed, list[Any]]] = {}

    def __call__(self, *given: Any) -> Any:
        tensors: list[Tensor] = []
        form = taken_apart(given, tensors)
        key = f"{form} {[(tuple(t.shape), t.dtype) for t in tensors]}"
        if key not in self._known:
            found: list[Any] = [None]

            def run(*tensors: Tensor) -> list[Tensor]:
                outputs: list[Tensor] = []
                result = self.function(*put_together(form, iter(tensors)))
                found[0] = taken_apart(result, outputs)
                return outputs

            self._known[key] = (Graphed(run, self.device), found)
        graphed, found = self._known[key]
        # the next call writes to the same places
        outputs = [t.clone() for t in graphed(*tensors)]
        return put_together(found[0], iter(outputs))


class RecordedWorld:
    """A World whose steps, and looks at them, are replayed; all else is the world's own."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.step = Recorded(world.step, world.device)
        self._decode = Recorded(world.decode, world.device)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.world, name)

    def decode(self, state: State) -> Tensor:
        """Look: (B, 3, H, W) uint8."""
        if state.carry is not None and state.carry.lost is None:
            return self.world.decode(state)  # the first look keeps what it finds in the state
        return self._decode(state)
