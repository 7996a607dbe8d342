"""Latents as vectors, and statistics of codes.

Letters: N latents a frame, P patches, G codebooks, K codes of each, D latent width.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from models.layers.precision import to_float64
from models.tokenizers.tokenizer import LatentSpec


class HasCodebooks(Protocol):
    """A tokenizer, or a world."""

    @property
    def codebooks(self) -> Tensor:
        """(G, K, D / G) float; empty where latents are continuous."""
        ...


class CodebookEmbedding(nn.Module):
    """Codes to their codebook vectors, of mean 0 and standard deviation 1; continuous latents
    unchanged.

    The vectors are the tokenizer's and are not trained: codes that look alike are near.
    """

    codebook: Tensor

    def __init__(self, latents: LatentSpec) -> None:
        super().__init__()
        self.latents = latents
        dim = latents.dim // latents.num_codebooks
        shape = (latents.num_codebooks, latents.codebook_size, dim)
        self.register_buffer("codebook", torch.zeros(shape))

    def load_codebook(self, source: HasCodebooks) -> None:
        """Copy the tokenizer's codebooks."""
        if self.latents.kind == "discrete":
            codebooks = source.codebooks
            std = codebooks.std(1, keepdim=True).clamp(min=1e-4)
            self.codebook.copy_((codebooks - codebooks.mean(1, keepdim=True)) / std)

    def forward(self, latents: Tensor) -> Tensor:
        """(..., N) codes or (..., P, D) -> (..., P, D)."""
        if self.latents.kind == "continuous":
            return latents
        return self.codebook.flatten(0, 1)[flat_ids(latents, self.latents)].flatten(-2)


def code_counts(codes: Tensor, latents: LatentSpec) -> Tensor:
    """Count how often each code occurs: (..., N) int64 -> (G, K) int64."""
    ids = flat_ids(codes, latents).flatten()
    # torch.bincount waits for the GPU
    counts = ids.new_zeros(latents.num_codebooks * latents.codebook_size)
    counts.scatter_add_(0, ids, torch.ones_like(ids))
    return counts.view(latents.num_codebooks, latents.codebook_size)


def perplexity(counts: Tensor) -> Tensor:
    """Return exp(entropy) of the codes' use, mean over codebooks: (G, K) -> ()."""
    probs = counts / counts.sum(-1, keepdim=True).clamp(min=1)
    return torch.special.entr(to_float64(probs)).sum(-1).exp().mean()


def flat_ids(codes: Tensor, latents: LatentSpec) -> Tensor:
    """Number the codes of all codebooks: (..., N) -> (..., P, G), from 0 to G K - 1."""
    offsets = latents.codebook_size * torch.arange(latents.num_codebooks, device=codes.device)
    return codes.unflatten(-1, (-1, latents.num_codebooks)) + offsets
