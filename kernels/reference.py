"""The truth about every operation, in a few lines of PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    """Divide the last axis by its root mean square (Zhang and Sennrich, arXiv:1910.07467).

    x: (..., D), any float dtype.  weight: (D,).  Returns (..., D) in x's dtype.
    """
    wide = x.float()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (wide * scale * weight.float()).to(x.dtype)


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn pairs of channels (RoPE, Su et al., arXiv:2104.09864), the halves being the pairs.

    x: (..., S, D).  cosine, sine: (..., S, D / 2), broadcast over x's leading axes.
    """
    first, second = x.chunk(2, dim=-1)
    cosine, sine = cosine.to(x.dtype), sine.to(x.dtype)
    return torch.cat([first * cosine - second * sine, first * sine + second * cosine], dim=-1)


def swiglu(gate_up: Tensor) -> Tensor:
    """Gate half of the last axis by the other (Shazeer, arXiv:2002.05202): (.., 2F) -> (.., F)."""
    gate, up = gate_up.chunk(2, dim=-1)
    return torch.nn.functional.silu(gate) * up
