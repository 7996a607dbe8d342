"""A function of tensors as one CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

WARM_UP = 3


class Graphed:
    """Calls `function` eagerly a few times, then records it once, and from then on replays that.

    Inputs keep their shapes and are copied to where the recording reads them.  Outputs are where
    it leaves them, and the next call overwrites them.  What else the function changes (weights,
    moments) has to stay at its place in memory, and nothing in it may wait for the GPU.  On a CPU
    the function runs, with the same fixed inputs and outputs.
    """

    def __init__(
        self,
        function: Callable[..., Sequence[Tensor]],
        device: torch.device,
        flag: str = "--graph",
    ) -> None:
        self.function, self.device, self.flag = function, device, flag
        self._calls = 0
        self._inputs: list[Tensor | None] = []
        self._outputs: list[Tensor] = []
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, *tensors: Tensor | None) -> list[Tensor]:
        """Give the function's outputs, detached; ValueError if a shape has changed."""
        self._take(tensors)
        self._calls += 1
        if self._calls <= WARM_UP:
            return self._aside()
        if self.device.type != "cuda":
            fresh = self._run()
            self._outputs = self._outputs or fresh
            for kept, value in zip(self._outputs, fresh, strict=True):
                kept.copy_(value)
        elif self._graph is None:
            self._record()
        if self._graph is not None:
            self._graph.replay()
        return self._outputs

    def _record(self) -> None:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self._outputs = self._run()
        except RuntimeError as problem:
            first = problem.__context__ or problem  # the second is that the recording has no end
            raise ValueError(
                f"this cannot be recorded as a CUDA graph: something in it waits for the GPU "
                f"({str(first).splitlines()[0]}); go on without {self.flag}"
            ) from first
        self._graph = graph

    def _take(self, tensors: Sequence[Tensor | None]) -> None:
        if not self._inputs:
            self._inputs = [
                None if t is None else torch.empty_like(t, device=self.device) for t in tensors
            ]
        for kept, given in zip(self._inputs, tensors, strict=True):
            known, new = (None if t is None else tuple(t.shape) for t in (kept, given))
            if known != new:
                raise ValueError(
                    f"a step was recorded for tensors of {known}, but now there is one of {new}; "
                    f"go on without {self.flag}"
                )
            if kept is not None and given is not None:
                kept.copy_(given, non_blocking=True)

    def _run(self) -> list[Tensor]:
        return [t.detach() for t in self.function(*self._inputs)]

    def _aside(self) -> list[Tensor]:
        if self.device.type != "cuda":
            return self._run()
        # what the first calls set up must not be on the stream that is recorded
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            outputs = self._run()
        torch.cuda.current_stream().wait_stream(stream)
        return outputs
