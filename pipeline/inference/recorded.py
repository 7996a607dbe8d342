"""Steps and searches of a world as CUDA graphs: what is started once a frame is one thing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from models.dynamics.dynamics import State
from models.world import World
from pipeline.graphed import StaticCudaGraph
from pipeline.pytree import flatten, unflatten


class CudaGraphed:
    """A function of states, tensors and None that is recorded anew for every shape they come in.

    It has to be a function: what it gives depends on what it is given, and nothing else changes.
    """

    def __init__(self, function: Callable[..., Any], device: torch.device) -> None:
        self.function, self.device = function, device
        self._graphs: dict[str, tuple[StaticCudaGraph, list[Any]]] = {}

    def __call__(self, *args: Any) -> Any:
        tensors: list[Tensor] = []
        input_spec = flatten(args, tensors)
        key = f"{input_spec} {[(tuple(t.shape), t.dtype) for t in tensors]}"
        if key not in self._graphs:
            output_spec: list[Any] = [None]

            def run(*tensors: Tensor) -> list[Tensor]:
                outputs: list[Tensor] = []
                result = self.function(*unflatten(input_spec, iter(tensors)))
                output_spec[0] = flatten(result, outputs)
                return outputs

            self._graphs[key] = (StaticCudaGraph(run, self.device), output_spec)
        graph, output_spec = self._graphs[key]
        # the next call writes to the same places
        outputs = [t.clone() for t in graph(*tensors)]
        return unflatten(output_spec[0], iter(outputs))


class CudaGraphedWorld:
    """A World whose steps, and looks at them, are replayed; all else is the world's own."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.step = CudaGraphed(world.step, world.device)
        self._decode = CudaGraphed(world.decode, world.device)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.world, name)

    def decode(self, state: State) -> Tensor:
        """Look: (B, 3, H, W) uint8."""
        if state.frame_residual is not None and state.frame_residual.residual is None:
            return self.world.decode(state)  # the first look keeps what it finds in the state
        return self._decode(state)
