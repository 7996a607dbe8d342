"""A function of tensors as one CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

WARMUP_CALLS = 3


class StaticCudaGraph:
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
        self._static_inputs: list[Tensor | None] = []
        self._static_outputs: list[Tensor] = []
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, *tensors: Tensor | None) -> list[Tensor]:
        """Give the function's outputs, detached; ValueError if a shape has changed."""
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
            cause = problem.__context__ or problem  # the second is that the recording has no end
            raise ValueError(
                f"this cannot be recorded as a CUDA graph: something in it waits for the GPU "
                f"({str(cause).splitlines()[0]}); go on without {self.flag}"
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
                    f"a step was recorded for tensors of {expected}, but now there is one of {actual}; "
                    f"go on without {self.flag}"
                )
            if static is not None and tensor is not None:
                static.copy_(tensor, non_blocking=True)

    def _run(self) -> list[Tensor]:
        return [t.detach() for t in self.function(*self._static_inputs)]

    def _warm_up(self) -> list[Tensor]:
        if self.device.type != "cuda":
            return self._run()
        # what the first calls set up must not be on the stream that is recorded
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            outputs = self._run()
        torch.cuda.current_stream().wait_stream(stream)
        return outputs
