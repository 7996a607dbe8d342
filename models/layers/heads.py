"""Output heads: scalars as a distribution over bins, and codes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kernels import linear_cross_entropy
from models.tokenizers.codes import CodebookEmbedding
from models.tokenizers.tokenizer import LatentSpec


def symexp(x: Tensor) -> Tensor:
    """sign(x) (exp |x| - 1) (DreamerV3, arXiv:2301.04104, equation 9)."""
    return torch.sign(x) * torch.expm1(torch.abs(x))


class TwoHot(nn.Module):
    """Predict a number as a distribution over symexp-spaced bins (DreamerV3, section 3).

    The linear layer starts at zero, so that the first predictions are 0.  The bins end at symexp(6)
    = 402, not at the paper's symexp(20) = 5e8, where a softmax's remaining 1e-10 is worth 0.05.
    """

    bins: Tensor

    def __init__(self, dim: int, num_bins: int = 255, limit: float = 6.0) -> None:
        super().__init__()
        self.out = nn.Linear(dim, num_bins)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        half = symexp(torch.linspace(-limit, 0, num_bins // 2 + 1))
        self.register_buffer("bins", torch.cat([half, -half[:-1].flip(0)]), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> the expected number, (...)."""
        probs = torch.softmax(self.out(x).float(), dim=-1)
        # the outer bins are huge: sum from both ends inwards, so that they cancel exactly
        half = (len(self.bins) - 1) // 2
        weighted = probs * self.bins
        low, high = weighted[..., :half], weighted[..., half + 1 :].flip(-1)
        return (low + high).sum(-1)

    def loss(self, x: Tensor, target: Tensor) -> Tensor:
        """(..., D), (...) -> cross-entropy to the two bins around the target, (...)."""
        log_probs = torch.log_softmax(self.out(x).float(), dim=-1)
        above = torch.searchsorted(self.bins, target.float().contiguous(), right=True)
        above = above.clamp(1, len(self.bins) - 1)
        below = above - 1
        gap = self.bins[above] - self.bins[below]
        fraction = ((target - self.bins[below]) / gap).clamp(0, 1)
        low = log_probs.gather(-1, below[..., None])[..., 0]
        high = log_probs.gather(-1, above[..., None])[..., 0]
        return -((1 - fraction) * low + fraction * high)


class CodeHead(nn.Module):
    """Codes of P patches, N = P G of G codebooks of K codes, from vectors of width D."""

    latents: LatentSpec
    vectors: CodebookEmbedding

    def make_code_head(self, dim: int) -> None:
        """Make the weights, after `vectors`."""
        num_codebooks, codebook_size, code_dim = self.vectors.codebook.shape
        self.code_head = nn.Parameter(torch.randn(num_codebooks, code_dim, dim) / (3 * dim) ** 0.5)
        self.class_head = nn.Parameter(torch.zeros(num_codebooks, codebook_size, dim))
        self.head_bias = nn.Parameter(torch.zeros(num_codebooks, codebook_size))
        self.copy_logit = nn.Linear(dim, num_codebooks)
        nn.init.zeros_(self.copy_logit.weight)
        nn.init.constant_(self.copy_logit.bias, 6.0)  # most codes stay

    def cross_entropy(
        self, out: Tensor, prev_codes: Tensor, target: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Cross-entropy and the likeliest codes: (..., P, D), (..., N) -> (..., N) each."""
        num_codebooks, flat = self.latents.num_codebooks, out.flatten(0, -2)
        results = [
            linear_cross_entropy(flat, weight, code.flatten(), bias, prev.flatten(), copy.flatten())
            for weight, bias, code, prev, copy in zip(
                self.output_weight(),
                self.head_bias,
                target.unflatten(-1, (-1, num_codebooks)).unbind(-1),
                prev_codes.unflatten(-1, (-1, num_codebooks)).unbind(-1),
                self.copy_logit(out).unbind(-1),
                strict=True,
            )
        ]
        cross_entropy, predicted = (
            torch.stack(x, dim=-1).view(target.shape) for x in zip(*results, strict=True)
        )
        return cross_entropy, predicted

    def output_weight(self) -> Tensor:
        """Compute the output layer, (G, K, D): a code's row is learned, plus a projection of its
        vector."""
        projected = torch.einsum("GKd,GdD->GKD", self.vectors.codebook, self.code_head)
        return self.class_head + self.code_head.shape[1] ** -0.5 * projected

    def logits(self, out: Tensor, prev_codes: Tensor, weight: Tensor | None = None) -> Tensor:
        """(..., P, D), and the previous codes, (..., N) -> (..., N, K).

        The previous code gets `copy_logit`, so that the model need not learn to copy first.
        weight: of `output_weight`, for whoever needs it several times.
        """
        weight = self.output_weight() if weight is None else weight
        logits = nn.functional.linear(out, weight.flatten(0, 1), self.head_bias.flatten())
        logits = logits.unflatten(-1, weight.shape[:2]).flatten(-3, -2)
        copy_logit = self.copy_logit(out).flatten(-2)[..., None]
        return logits.scatter_add(-1, prev_codes[..., None], copy_logit.to(logits.dtype))
