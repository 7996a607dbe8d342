"""Output heads: scalars as a distribution over bins."""

from __future__ import annotations

import torch
from torch import Tensor, nn


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
