"""Operations that models are made of: the definition is in `kernels/reference.py`.

Triton kernels run on CUDA tensors where they are asked for or were measured faster (dispatch.py),
the same mathematics in PyTorch elsewhere.  Triton is imported only where it runs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels import eager, reference
from kernels.dispatch import Backend, attention_variant, describe, set_backend, use_triton
from kernels.reference import BlockMask

# transformers asks any package called `kernels` for its version
__version__ = "0.1.0"

__all__ = [
    "Backend",
    "BlockMask",
    "add_rms_norm",
    "apply_rope",
    "attention",
    "attention_with_cache",
    "decode_attention",
    "describe",
    "gru_step",
    "linear_cross_entropy",
    "nearest_code",
    "rms_norm",
    "set_backend",
    "swiglu",
]


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-6, autocast_output: bool = False) -> Tensor:
    """Divide the last axis by its root mean square.

    x: (..., D), any float dtype.  weight: (D,).
    autocast_output: only matrix products read the result, which cast it under autocast: a kernel
    then writes autocast's dtype itself.  Returns (..., D), else in x's dtype.
    """
    if use_triton("rms_norm", x, fuses=True):
        from kernels import norm

        return norm.rms_norm(x, weight, eps, _autocast_dtype(x) if autocast_output else None)
    if torch.compiler.is_compiling():  # the compiler fuses the definition and its gradient
        return reference.rms_norm(x, weight, eps)
    return eager.rms_norm(x, weight, eps)


def apply_rope(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotate pairs of channels by the angles of their positions.

    x: (..., S, D).  cosine, sine: (S, D / 2).  Returns (..., S, D) in x's dtype.
    """
    if use_triton("apply_rope", x):
        from kernels import rope

        return rope.apply_rope(x, cosine, sine)
    return reference.apply_rope(x, cosine, sine)


def swiglu(gate_up: Tensor) -> Tensor:
    """Gate one half of the last axis by the other: (..., 2F) -> (..., F)."""
    if use_triton("swiglu", gate_up):
        from kernels import gate

        return gate.swiglu(gate_up)
    if torch.compiler.is_compiling():
        return reference.swiglu(gate_up)
    return eager.swiglu(gate_up)


def add_rms_norm(
    x: Tensor, branch: Tensor, weight: Tensor, eps: float = 1e-6, autocast_output: bool = False
) -> tuple[Tensor, Tensor]:
    """Add a branch to the residual stream: the sum, and its norm.

    x, branch: (..., D).  weight: (D,).  autocast_output: as in `rms_norm`, of the norm.
    Returns two (..., D) in x's dtype.
    """
    if use_triton("add_rms_norm", x, fuses=True):
        from kernels import norm

        return norm.add_rms_norm(
            x, branch, weight, eps, _autocast_dtype(x) if autocast_output else None
        )
    total = x + branch
    return total, rms_norm(total, weight, eps, autocast_output)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    block_mask: BlockMask,
    angles: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Attend to the keys that the mask leaves visible; the queries are the last of the keys.

    q: (B, H, Q, E).  k, v: (B, H, K, E), Q <= K, both whole blocks of the mask.
    angles: cosine and sine, (K, E / 2), that rotate keys and queries first.
    Returns (B, H, Q, E) in q's dtype.
    """
    if use_triton(attention_variant(block_mask, k.shape[2]), q, k, v):
        from kernels import flash

        return flash.attention(q, k, v, block_mask, angles)
    return eager.attention(q, k, v, block_mask, angles)


def attention_with_cache(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cache: tuple[Tensor, Tensor],
    block_mask: BlockMask,
    angles: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Attend to a cache and to the new keys behind it, and return both together.

    q, k, v: (B, H, S, E).  cache: keys and values, (B, H, C, E).  angles: (C + S, E / 2), that
    rotate keys and queries first; the returned keys are not rotated.
    Returns (B, H, S, E), and all keys and values, (B, H, C + S, E).
    """
    if use_triton(attention_variant(block_mask, cache[0].shape[2] + k.shape[2]), q, k, v):
        from kernels import flash

        return flash.attention_with_cache(q, k, v, cache, block_mask, angles)
    return eager.attention_with_cache(q, k, v, cache, block_mask, angles)


def decode_attention(q: Tensor, keys: Tensor, values: Tensor, bounds: Tensor) -> Tensor:
    """Let a few queries attend to the rows `bounds[0]` up to `bounds[1]` of a static cache.

    q: (B, H, Q, E).  keys, values: (B, H, M, E).  bounds: (2,) int32, on q's device, so that one
    CUDA graph serves every length.  Returns (B, H, Q, E), without gradients.
    """
    if use_triton("decode_attention", q, keys, values):
        from kernels import flash_decoding

        return flash_decoding.decode_attention(q, keys, values, bounds)
    return eager.decode_attention(q, keys, values, bounds)


def linear_cross_entropy(
    x: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None = None,
    before: Tensor | None = None,
    bonus: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute the cross-entropy of a linear layer's output, and the likeliest class.

    x: (R, D).  weight: (V, D).  target: (R,) int64.  bias: (V,).  before: (R,) int64 and bonus:
    (R,): bonus[r] is added to the logit of class before[r].  Returns losses (R,) float32 and
    classes (R,) int64.  On a GPU no (R, V) array is kept for the gradient.
    """
    if use_triton("linear_cross_entropy", x, weight):
        from kernels import entropy

        autocast_dtype = _autocast_dtype(x)
        if autocast_dtype is not None:
            x, weight = x.to(autocast_dtype), weight.to(autocast_dtype)
        return entropy.linear_cross_entropy(x, weight, target, bias, before, bonus)
    return eager.linear_cross_entropy(x, weight, target, bias, before, bonus)


def nearest_code(vectors: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Find the nearest row of a codebook for each vector, and what updates the codebook by EMA.

    vectors: (R, D).  codebook: (K, D), float32.  Returns codes (R,) int64, counts (K,) int64, and
    sums of the vectors of each code (K, D) float32, without gradients.
    """
    if use_triton("nearest_code", vectors, codebook):
        from kernels import quantize

        return quantize.nearest_code(vectors, codebook)
    return eager.nearest_code(vectors, codebook)


def gru_step(
    parts: Tensor,
    state: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-3,
) -> Tensor:
    """Take a step of a GRU from the sum of its products: reset, candidate and update, in order.

    parts: (..., 3D).  state: (..., D).  weight, bias: (3D,) of a LayerNorm over the parts, or None.
    Returns the next state, (..., D).
    """
    if use_triton("gru_step", parts, state):
        from kernels import recurrent

        return recurrent.gru_step(parts, state, weight, bias, eps)
    return reference.gru_step(parts, state, weight, bias, eps)


def _autocast_dtype(x: Tensor) -> torch.dtype | None:
    """Return the dtype of products under autocast, on a GPU alone: Triton's interpreter is wrong in
    bfloat16."""
    if not (x.is_cuda and torch.is_autocast_enabled(x.device.type)):
        return None
    return torch.get_autocast_dtype(x.device.type)
