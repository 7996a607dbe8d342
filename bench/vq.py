"""A codebook's training step, codes and EMA, against vector-quantize-pytorch.

Letters: R vectors, K rows of the book, D their width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

import kernels
from bench.cases import COMPILED, EAGER
from bench.correctness import check_codes
from bench.cuda_graph import CALLS, Step, captured
from bench.memory import memory_rows
from bench.pairs import Options, Row, Wrong, clocked, compare, race
from kernels import eager

AREA = "kernels"
PEER = "vector-quantize-pytorch, compiled"
PEER_GRAPHS = "vector-quantize-pytorch, compiled, CUDA graphs"
PEER_EAGER = "vector-quantize-pytorch"
# on a GPU: of time, and of peak memory
BARS = {PEER: (3.0, 10.0), PEER_GRAPHS: (3.0, 10.0), COMPILED: (1.0, 2.0)}
MEMORY = {PEER: (5.0, 20.0)}
DECAY, EPSILON = 0.99, 1e-5

Size = tuple[int, int, int]


def sizes(device: torch.device) -> list[Size]:
    """(R, K, D)."""
    if device.type == "cuda":
        return [(65_536, 1024, 64), (65_536, 1024, 256), (65_536, 8192, 64), (65_536, 8192, 256)]
    return [(4096, 512, 32)]


def named(size: Size) -> str:
    return f"assign, {size[0]} x {size[2]} to {size[1]} codes"


class Book:
    """A codebook that follows what is assigned to it: decay and smoothing as the peer's."""

    def __init__(self, book: Tensor) -> None:
        self.book, self.total = book.clone(), book.clone()
        self.size = torch.ones(len(book), device=book.device)

    def follow(self, codes: Tensor, counts: Tensor, sums: Tensor) -> Tensor:
        """Give the rows of `codes`, (R, D), and move the book."""
        given = self.book[codes]
        self.size.lerp_(counts.to(self.size.dtype), 1 - DECAY)
        self.total.lerp_(sums, 1 - DECAY)
        whole = self.size.sum()
        smooth = (self.size + EPSILON) / (whole + len(self.book) * EPSILON) * whole
        torch.div(self.total, smooth[:, None], out=self.book)
        return given


def raced(size: Size, options: Options) -> Iterator[Row]:
    """Time and peak memory; codes are held to the nearest rows in float64 first."""
    on_gpu = options.device.type == "cuda"
    count, entries, width = size
    vectors = torch.randn(count, width, device=options.device)
    book = torch.randn(entries, width, device=options.device)
    odd = torch.randn(1001, 37, device=options.device)
    check_codes("assign", kernels.assign(odd, odd[:77] + 0.1)[0], odd, odd[:77] + 0.1)
    codes, counts, sums = kernels.assign(vectors, book)
    check_codes(named(size), codes, vectors, book)
    exact = torch.zeros_like(book, dtype=torch.float64).index_add_(0, codes, vectors.double())
    if not torch.equal(counts, torch.bincount(codes, minlength=entries)):
        raise Wrong(f"{named(size)}: counts are not those of the codes")
    if not (sums - exact).abs().max() <= 1e-5 * exact.abs().max():
        raise Wrong(f"{named(size)}: sums are not those of the vectors of each code")

    mine, plain = Book(book), Book(book)
    compiled = torch.compile(eager.assign, dynamic=False)
    steps: dict[str, Step] = {
        "ours": lambda: mine.follow(*kernels.assign(vectors, mine.book)),
        EAGER: lambda: plain.follow(*eager.assign(vectors, plain.book)),
    }
    if on_gpu or not options.quick:
        other = Book(book)
        steps[COMPILED] = lambda: other.follow(*compiled(vectors, other.book))
    peer = _peer(book)
    check_codes(PEER_EAGER, _call(peer, vectors)[1], vectors, book)
    steps[PEER_EAGER] = lambda: _call(peer, vectors)
    if on_gpu or not options.quick:
        fast = torch.compile(_peer(book), dynamic=False)
        steps[PEER] = lambda: _call(fast, vectors)
    if on_gpu:
        graphed = torch.compile(_peer(book), dynamic=False, mode="reduce-overhead")
        steps[PEER_GRAPHS] = lambda: _call(graphed, vectors)
    for run in steps.values():
        run()
    raced: dict[str, Step] = dict(steps)
    calls, note = 1, "codes, EMA, looked-up vectors"
    if on_gpu:  # ours is recorded; a recording of theirs that fails spoils all after it
        raced |= {name: partial(_repeated, run) for name, run in steps.items()}
        raced["ours"], calls = captured(steps["ours"]), CALLS
        note += "; ours as a CUDA graph, the others launched one by one"
    first = clocked(raced["ours"], options.device)
    repeats = max(1, min(50, int(0.01 / first)))
    seconds = race(raced, options.rounds, device=options.device, repeats=repeats)
    each = {name: [taken / calls for taken in turns] for name, turns in seconds.items()}
    for row in compare(AREA, named(size), each, BARS if on_gpu else {}, unit="us"):
        yield replace(row, note=note)
    if on_gpu:
        yield from memory_rows(AREA, named(size), steps, MEMORY)


def _repeated(run: Step) -> None:
    for _ in range(CALLS):
        run()


def _peer(book: Tensor) -> torch.nn.Module:
    """The library's layer in training, without losses and tricks that are not asked for."""
    from vector_quantize_pytorch import VectorQuantize

    layer = VectorQuantize(
        dim=book.shape[1], codebook_size=len(book), decay=DECAY, eps=EPSILON,
        commitment_weight=0.0, rotation_trick=False,
    ).to(book.device)  # fmt: skip
    codebook: Any = layer._codebook
    codebook.embed.data.copy_(book[None])
    codebook.embed_avg.data.copy_(book[None])
    codebook.cluster_size.data.fill_(1.0)
    return layer.train()


@torch.no_grad()
def _call(layer: Callable[..., Any], vectors: Tensor) -> tuple[Tensor, Tensor]:
    given, codes, _ = layer(vectors[None])
    return given[0], codes[0]
