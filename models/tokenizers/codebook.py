"""How a codebook follows what is assigned to it: moving averages, and new vectors for dead codes.

Buffers, k-means and smoothing are vector-quantize-pytorch's.  What waits for a GPU there, the
revival of dead codes, is done here without, so that a whole step can be one CUDA graph.

Letters: R vectors, D numbers of each, K codes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn

from kernels import nearest_code
from models.layers.sampling import sample_rows


@torch.no_grad()
def update_codebook_ema(
    quantizer: nn.Module, vectors: Tensor, weights: Tensor, initialize: bool
) -> None:
    """Update the moving averages from a balanced quarter of the patches, (R, D); rarity: (R,).

    begins: k-means goes before, if it has not been; to find that out is to wait for a GPU.

    Most patches of a recording are plain background. Left alone they crowd the averages and
    the revival of dead codes; drawn by one over the size of their code, rare patches count.
    """
    sampled = vectors[sample_rows(weights, max(1, len(vectors) // 4))].detach()
    codebook: Any = quantizer._codebook
    if initialize:
        _init_codebook(codebook, sampled)
    _, counts, sums = nearest_code(sampled, codebook.embed[0])
    for average, found in ((codebook.cluster_size, counts.float()), (codebook.embed_avg, sums)):
        codebook.all_reduce_fn(found)
        average.lerp_(found[None], 1 - codebook.decay)
    codebook.update_ema()
    reset_dead_codes(codebook, sampled)


@torch.compiler.disable()  # torch 2.13 fails where vectors are as many as codes
def _init_codebook(codebook: Any, vectors: Tensor) -> None:
    codebook.init_embed_(vectors[None])


def reset_dead_codes(codebook: Any, vectors: Tensor) -> None:
    """Put a vector of the batch, (R, D), in place of each code that next to nothing was assigned to
    of late (Dhariwal et al., arXiv:2005.00341, random restarts).

    With fewer vectors than dead codes, some wait for the next step.  Among processes, each gives
    the vectors of some codes.
    """
    cluster_size, embed, embed_sum = (
        x[0] for x in (codebook.cluster_size, codebook.embed, codebook.embed_avg)
    )
    dead = cluster_size < codebook.threshold_ema_dead_code
    count = min(len(vectors), len(cluster_size))
    # all codes, dead ones first, each with a vector that only a dead one takes: how many there are
    # need not be known
    order = (torch.rand_like(cluster_size) - dead.float()).argsort()[:count]
    replacements = vectors[sample_rows(torch.ones(len(vectors), device=vectors.device), count)]
    if codebook.use_ddp:
        owner = torch.arange(count, device=vectors.device) % distributed.get_world_size()
        replacements = torch.where((owner == distributed.get_rank())[:, None], replacements, 0.0)
        codebook.all_reduce_fn(replacements)
    resets = dead[order]
    weight = codebook.reset_cluster_size
    cluster_size[order] = torch.where(resets, weight, cluster_size[order])
    embed[order] = torch.where(resets[:, None], replacements, embed[order])
    embed_sum[order] = torch.where(resets[:, None], weight * replacements, embed_sum[order])
