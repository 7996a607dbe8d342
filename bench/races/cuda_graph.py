"""Capture several calls as one CUDA graph, so that kernels are timed and not their launches."""

from __future__ import annotations

from collections.abc import Callable

import torch

# calls of one CUDA graph, so that its launch counts for little
CALLS_PER_GRAPH = 10

Step = Callable[[], object]


def capture_graph(run: Step) -> Step:
    """Capture CALLS_PER_GRAPH calls; raises RuntimeError if one synchronizes with the GPU."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = [run() for _ in range(CALLS_PER_GRAPH)]

    def replay() -> object:
        graph.replay()
        return outputs  # what the graph writes stays in memory

    return replay
