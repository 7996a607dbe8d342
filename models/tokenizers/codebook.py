"""How a codebook follows what is assigned to it: moving averages, and new vectors for dead codes.

Buffers, k-means and smoothing are vector-quantize-pytorch's.  What waits for a GPU there, the
revival of dead codes, is done here without, so that a whole step can be one CUDA graph.

Letters: R vectors, D numbers of each, K codes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn

from kernels import assign
from models.layers.sampling import draw_rows


@torch.no_grad()
def move_codebook(quantizer: nn.Module, vectors: Tensor, rarity: Tensor, begins: bool) -> None:
    """Update the moving averages from a balanced quarter of the patches, (R, D); rarity: (R,).

    begins: k-means goes before, if it has not been; to find that out is to wait for a GPU.

    Most patches of a recording are plain background. Left alone they crowd the averages and
    the revival of dead codes; drawn by one over the size of their code, rare patches count.
    """
    chosen = vectors[draw_rows(rarity, max(1, len(vectors) // 4))].detach()
    book: Any = quantizer._codebook
    if begins:
        _begin(book, chosen)
    _, counts, sums = assign(chosen, book.embed[0])
    for average, found in ((book.cluster_size, counts.float()), (book.embed_avg, sums)):
        book.all_reduce_fn(found)
        average.lerp_(found[None], 1 - book.decay)
    book.update_ema()
    revive(book, chosen)


@torch.compiler.disable()  # torch 2.13 fails where vectors are as many as codes
def _begin(book: Any, vectors: Tensor) -> None:
    book.init_embed_(vectors[None])


def revive(book: Any, vectors: Tensor) -> None:
    """Put a vector of the batch, (R, D), in place of each code that next to nothing was assigned to
    of late (Dhariwal et al., arXiv:2005.00341, random restarts).

    With fewer vectors than dead codes, some wait for the next step.  Among processes, each gives
    the vectors of some codes.
    """
    size, embed, summed = (x[0] for x in (book.cluster_size, book.embed, book.embed_avg))
    dead = size < book.threshold_ema_dead_code
    count = min(len(vectors), len(size))
    # all codes, dead ones first, each with a vector that only a dead one takes: how many there are
    # need not be known
    order = (torch.rand_like(size) - dead.float()).argsort()[:count]
    given = vectors[draw_rows(torch.ones(len(vectors), device=vectors.device), count)]
    if book.use_ddp:
        turn = torch.arange(count, device=vectors.device) % distributed.get_world_size()
        given = torch.where((turn == distributed.get_rank())[:, None], given, 0.0)
        book.all_reduce_fn(given)
    takes = dead[order]
    weight = book.reset_cluster_size
    size[order] = torch.where(takes, weight, size[order])
    embed[order] = torch.where(takes[:, None], given, embed[order])
    summed[order] = torch.where(takes[:, None], weight * given, summed[order])
