"""Filters along the axes of images, as matrices: one product is faster than a sum of shifted
images, and on CPUs than a convolution of single channels.

Letters: B images, k weights of a filter, S pixels of a side.
"""

from __future__ import annotations

import torch
from torch import Tensor


def gaussian(sigma: Tensor, radius: int) -> Tensor:
    """Weights from -radius to radius pixels, their sum 1: (B,) pixels -> (B, 2 radius + 1)."""
    offsets = torch.arange(-radius, radius + 1, device=sigma.device)
    # a standard deviation of 0 would divide by itself
    weights = (-0.5 * (offsets / sigma.clamp(min=1e-3)[:, None]).square()).exp()
    return weights / weights.sum(1, keepdim=True)


def filter_images(images: Tensor, weights: Tensor) -> Tensor:
    """Filter rows and columns: (B, C, H, W), (B or 1, k) -> (B, C, H, W); the border's pixel
    continues beyond it."""
    height, width = images.shape[2:]
    rows = _matrix(weights, height)
    columns = rows if height == width else _matrix(weights, width)
    return rows @ images @ columns.transpose(2, 3)


def _matrix(weights: Tensor, side: int) -> Tensor:
    """(B, k) -> (B, 1, S, S)."""
    pixels = torch.arange(side, device=weights.device)
    radius = weights.shape[1] // 2
    offsets = torch.arange(-radius, radius + 1, device=weights.device)
    at = (pixels[:, None] + offsets).clamp(0, side - 1)
    reads = (at[..., None] == pixels).to(weights)  # (S, k, S)
    return torch.einsum("bk,nkm->bnm", weights, reads)[:, None]
