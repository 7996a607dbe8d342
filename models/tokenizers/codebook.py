"""Codebook training: moving averages (EMA), and new vectors for dead codes.

Buffers, k-means and smoothing are vector-quantize-pytorch's.  Its reset of dead codes waits for the
GPU; this one does not, so that a whole training step can be one CUDA graph.

Letters: R vectors, D numbers of each, K codes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn

from kernels import nearest_code
from models.layers.sampling import sample_rows


@torch.no_grad()
def update_codebook_ema(quantizer: nn.Module, vectors: Tensor, weights: Tensor) -> None:
    """Update the moving averages from a balanced quarter of the vectors, (R, D).

    weights: (R,), of the sampling; one over the size of a vector's code gives rare patches a share,
    where most patches are plain background.
    """
    sampled = _quarter(vectors, weights)
    codebook: Any = quantizer._codebook
    _, counts, sums = nearest_code(sampled, codebook.embed[0])
    for average, found in ((codebook.cluster_size, counts.float()), (codebook.embed_avg, sums)):
        codebook.all_reduce_fn(found)
        average.lerp_(found[None], 1 - codebook.decay)
    codebook.update_ema()
    reset_dead_codes(codebook, sampled)


@torch.compiler.disable()  # torch 2.13 fails where vectors and codes are equally many
@torch.no_grad()
def init_codebook(quantizer: nn.Module, vectors: Tensor) -> None:
    """Run k-means on a quarter of the vectors, (R, D)."""
    codebook: Any = quantizer._codebook
    codebook.init_embed_(_quarter(vectors, torch.ones_like(vectors[:, 0]))[None])


def _quarter(vectors: Tensor, weights: Tensor) -> Tensor:
    return vectors[sample_rows(weights, max(1, len(vectors) // 4))].detach()


def reset_dead_codes(codebook: Any, vectors: Tensor) -> None:
    """Replace each code that is hardly used by a vector of the batch, (R, D) (random restarts,
    Dhariwal et al., arXiv:2005.00341).

    With fewer vectors than dead codes, some wait for the next step.  Among several processes, each
    provides the vectors of some codes.
    """
    cluster_size, embed, embed_sum = (
        x[0] for x in (codebook.cluster_size, codebook.embed, codebook.embed_avg)
    )
    dead = cluster_size < codebook.threshold_ema_dead_code
    count = min(len(vectors), len(cluster_size))
    # all codes, dead ones first; only a dead one takes its vector: their number need not be known
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
