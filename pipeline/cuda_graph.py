"""Functions captured as CUDA graphs: a training step, a step of a world, a search of a planner."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from models.dynamics.dynamics import State
from models.world import World
from pipeline.pytree import TreeSpec, flatten, unflatten

WARMUP_CALLS = 3


class StaticCudaGraph:
    """Calls `function` eagerly WARMUP_CALLS times, then captures it once and replays the graph.

    Inputs keep their shapes and are copied to where the graph reads them.  Outputs stay where the
    graph writes them, and the next call overwrites them.  What else the function changes (weights,
    moments) must keep its address, and nothing in it may wait for the GPU.  On a CPU the function
    runs, with the same fixed inputs and outputs.
    """

    def __init__(
        self,
        function: Callable[..., Sequence[Tensor]],
        device: torch.device,
        flag: str = "--cuda-graph",
    ) -> None:
        """flag: what messages advise to leave out."""
        self.function, self.device, self.flag = function, device, flag
        self._calls = 0
        self._static_inputs: list[Tensor | None] = []
        self._static_outputs: list[Tensor] = []
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, *tensors: Tensor | None) -> list[Tensor]:
        """Return the function's outputs, detached; ValueError if a shape has changed."""
        self._copy_inputs(tensors)
        self._calls += 1
        if self._calls <= WARMUP_CALLS:
            return self._warm_up()
        if self.device.type != "cuda":
            outputs = self._run()
            self._static_outputs = self._static_outputs or outputs
            for static, value in zip(self._static_outputs, outputs, strict=True):
                static.copy_(value)
        elif self._graph is None:
            self._capture()
        if self._graph is not None:
            self._graph.replay()
        return self._static_outputs

    def _capture(self) -> None:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self._static_outputs = self._run()
        except RuntimeError as problem:
            cause = problem.__context__ or problem  # the second one is that the capture never ended
            raise ValueError(
                f"this cannot be captured as a CUDA graph: something in it waits for the GPU "
                f"({str(cause).splitlines()[0]}); leave {self.flag} out"
            ) from cause
        self._graph = graph

    def _copy_inputs(self, tensors: Sequence[Tensor | None]) -> None:
        if not self._static_inputs:
            self._static_inputs = [
                None if t is None else torch.empty_like(t, device=self.device) for t in tensors
            ]
        for static, tensor in zip(self._static_inputs, tensors, strict=True):
            expected, actual = (None if t is None else tuple(t.shape) for t in (static, tensor))
            if expected != actual:
                raise ValueError(
                    f"a step was captured for tensors of {expected}, but now there is one of "
                    f"{actual}; leave {self.flag} out"
                )
            if static is not None and tensor is not None:
                static.copy_(tensor, non_blocking=True)

    def _run(self) -> list[Tensor]:
        return [t.detach() for t in self.function(*self._static_inputs)]

    def _warm_up(self) -> list[Tensor]:
        if self.device.type != "cuda":
            return self._run()
        # what the first calls allocate must not be on the stream that is captured
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            outputs = self._run()
        torch.cuda.current_stream().wait_stream(stream)
        return outputs


class CudaGraphed:
    """A function of nested tensors (pipeline/pytree.py), captured once per structure and shapes.

    It must be pure: outputs depend on the arguments alone, and nothing else changes.
    """

    def __init__(self, function: Callable[..., Any], device: torch.device) -> None:
        self.function, self.device = function, device
        self._graphs: dict[str, tuple[StaticCudaGraph, list[TreeSpec]]] = {}

    def __call__(self, *args: Any) -> Any:
        tensors: list[Tensor] = []
        input_spec = flatten(args, tensors)
        key = f"{input_spec} {[(tuple(t.shape), t.dtype) for t in tensors]}"
        if key not in self._graphs:
            output_specs: list[TreeSpec] = []

            def run(*tensors: Tensor) -> list[Tensor]:
                outputs: list[Tensor] = []
                result = self.function(*unflatten(input_spec, iter(tensors)))
                output_specs[:] = [flatten(result, outputs)]
                return outputs

            self._graphs[key] = (StaticCudaGraph(run, self.device), output_specs)
        graph, output_specs = self._graphs[key]
        # the next call writes to the same addresses
        outputs = [t.clone() for t in graph(*tensors)]
        return unflatten(output_specs[0], iter(outputs))


class CudaGraphedWorld:
    """A World whose `step` and `decode` are replayed; everything else is the world's own."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.step = CudaGraphed(world.step, world.device)
        self._decode = CudaGraphed(world.decode, world.device)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.world, name)

    def decode(self, state: State) -> Tensor:
        """Return frames, (B, 3, H, W) uint8."""
        if state.frame_residual is not None and state.frame_residual.residual is None:
            return self.world.decode(state)  # the first call stores the residual in the state
        return self._decode(state)
