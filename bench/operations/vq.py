"""A codebook's training step, codes and EMA, against vector-quantize-pytorch.

Letters: R vectors, K rows of the codebook, D their width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

import kernels
from bench.operations.cases import COMPILED, EAGER
from bench.races.correctness import check_codes
from bench.races.cuda_graph import CALLS_PER_GRAPH, Step, capture_graph
from bench.races.memory import memory_rows
from bench.races.pairs import Incorrect, Options, Row, compare, race, time_call
from kernels import eager

AREA = "kernels"
PEER = "vector-quantize-pytorch, compiled"
PEER_GRAPHS = "vector-quantize-pytorch, compiled, CUDA graphs"
PEER_EAGER = "vector-quantize-pytorch"
# on a GPU, (target, stretch) of time, and of peak memory
TARGETS = {PEER: (3.0, 10.0), PEER_GRAPHS: (3.0, 10.0), COMPILED: (1.0, 2.0)}
MEMORY = {PEER: (5.0, 20.0)}
DECAY, EPSILON = 0.99, 1e-5

Size = tuple[int, int, int]


def sizes(device: torch.device) -> list[Size]:
    """Return the sizes to race, (R, K, D) each."""
    if device.type == "cuda":
        return [(65_536, 1024, 64), (65_536, 1024, 256), (65_536, 8192, 64), (65_536, 8192, 256)]
    return [(4096, 512, 32)]


def case_name(size: Size) -> str:
    return f"nearest_code, {size[0]} x {size[2]} to {size[1]} codes"


class EmaCodebook:
    """A codebook updated by EMA, with the peer's decay and smoothing."""

    def __init__(self, codebook: Tensor) -> None:
        self.codebook, self.total = codebook.clone(), codebook.clone()
        self.size = torch.ones(len(codebook), device=codebook.device)

    def update(self, codes: Tensor, counts: Tensor, sums: Tensor) -> Tensor:
        """Return the rows of `codes`, (R, D), and update the codebook."""
        given = self.codebook[codes]
        self.size.lerp_(counts.to(self.size.dtype), 1 - DECAY)
        self.total.lerp_(sums, 1 - DECAY)
        whole = self.size.sum()
        smooth = (self.size + EPSILON) / (whole + len(self.codebook) * EPSILON) * whole
        torch.div(self.total, smooth[:, None], out=self.codebook)
        return given


def race_rows(size: Size, options: Options) -> Iterator[Row]:
    """Race time and peak memory; codes are checked against the nearest rows in float64 first."""
    on_gpu = options.device.type == "cuda"
    count, entries, width = size
    vectors = torch.randn(count, width, device=options.device)
    codebook = torch.randn(entries, width, device=options.device)
    odd_vectors = torch.randn(1001, 37, device=options.device)
    check_codes(
        "nearest_code",
        kernels.nearest_code(odd_vectors, odd_vectors[:77] + 0.1)[0],
        odd_vectors,
        odd_vectors[:77] + 0.1,
    )
    codes, counts, sums = kernels.nearest_code(vectors, codebook)
    check_codes(case_name(size), codes, vectors, codebook)
    exact = torch.zeros_like(codebook, dtype=torch.float64).index_add_(0, codes, vectors.double())
    if not torch.equal(counts, torch.bincount(codes, minlength=entries)):
        raise Incorrect(f"{case_name(size)}: counts are not those of the codes")
    if not (sums - exact).abs().max() <= 1e-5 * exact.abs().max():
        raise Incorrect(f"{case_name(size)}: sums are not those of the vectors of each code")

    ours, plain = EmaCodebook(codebook), EmaCodebook(codebook)
    compiled = torch.compile(eager.nearest_code, dynamic=False)
    steps: dict[str, Step] = {
        "ours": lambda: ours.update(*kernels.nearest_code(vectors, ours.codebook)),
        EAGER: lambda: plain.update(*eager.nearest_code(vectors, plain.codebook)),
    }
    if on_gpu or not options.quick:
        other = EmaCodebook(codebook)
        steps[COMPILED] = lambda: other.update(*compiled(vectors, other.codebook))
    peer = _peer(codebook)
    check_codes(PEER_EAGER, _call(peer, vectors)[1], vectors, codebook)
    steps[PEER_EAGER] = lambda: _call(peer, vectors)
    if on_gpu or not options.quick:
        fast = torch.compile(_peer(codebook), dynamic=False)
        steps[PEER] = lambda: _call(fast, vectors)
    if on_gpu:
        graphed = torch.compile(_peer(codebook), dynamic=False, mode="reduce-overhead")
        steps[PEER_GRAPHS] = lambda: _call(graphed, vectors)
    for run in steps.values():
        run()
    raced: dict[str, Step] = dict(steps)
    calls, note = 1, "codes, EMA, looked-up vectors"
    if on_gpu:  # only ours is captured: a failed capture of theirs would break all that follows
        raced |= {name: partial(_repeat, run) for name, run in steps.items()}
        raced["ours"], calls = capture_graph(steps["ours"]), CALLS_PER_GRAPH
        note += "; ours as a CUDA graph, the others launched one by one"
    first = time_call(raced["ours"], options.device)
    repeats = max(1, min(50, int(0.01 / first)))
    seconds = race(raced, options.rounds, device=options.device, repeats=repeats)
    each = {name: [taken / calls for taken in turns] for name, turns in seconds.items()}
    for row in compare(AREA, case_name(size), each, TARGETS if on_gpu else {}, unit="us"):
        yield replace(row, note=note)
    if on_gpu:
        yield from memory_rows(AREA, case_name(size), steps, MEMORY)


def _repeat(run: Step) -> None:
    for _ in range(CALLS_PER_GRAPH):
        run()


def _peer(codebook: Tensor) -> torch.nn.Module:
    """Build the library's layer for training, without extra losses and tricks."""
    from vector_quantize_pytorch import VectorQuantize

    layer = VectorQuantize(
        dim=codebook.shape[1], codebook_size=len(codebook), decay=DECAY, eps=EPSILON,
        commitment_weight=0.0, rotation_trick=False,
    ).to(codebook.device)  # fmt: skip
    their_codebook: Any = layer._codebook
    their_codebook.embed.data.copy_(codebook[None])
    their_codebook.embed_avg.data.copy_(codebook[None])
    their_codebook.cluster_size.data.fill_(1.0)
    return layer.train()


@torch.no_grad()
def _call(layer: Callable[..., Any], vectors: Tensor) -> tuple[Tensor, Tensor]:
    given, codes, _ = layer(vectors[None])
    return given[0], codes[0]
