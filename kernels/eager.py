"""Operations in plain PyTorch, with the gradient written out where autograd would keep too much.

Autograd through the definition of RMSNorm keeps float32 copies of every step, which is several
times slower on a CPU in bfloat16.  SwiGLU keeps only its input.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear, scaled_dot_product_attention, silu

from kernels.reference import BlockMask, apply_rope

# on a CPU: fewer numbers are normalized faster in one call, fewer keys by a plain softmax
FEW_NUMBERS, FEW_KEYS = 2**15, 64


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Compute `kernels.rms_norm`; the mean square is summed in float32 at least."""
    learns = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    if not learns and (x.is_cuda or x.numel() <= FEW_NUMBERS):  # on a CPU it copies all to float32
        return torch.nn.functional.rms_norm(x, weight.shape, weight.to(x.dtype), eps)
    return _RmsNorm.apply(x, weight, eps)  # type: ignore[return-value]


def swiglu(gate_up: Tensor) -> Tensor:
    """Compute `kernels.swiglu`."""
    if not (torch.is_grad_enabled() and gate_up.requires_grad):
        gate, up = gate_up.chunk(2, dim=-1)
        return silu(gate).mul_(up)
    return _SwiGlu.apply(gate_up)  # type: ignore[return-value]


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide)
        scale = torch.rsqrt(length.square() / x.shape[-1] + eps).to(x.dtype)
        unit = x * scale
        ctx.save_for_backward(unit, weight, scale)
        return unit * weight.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None]:
        unit, weight, scale = ctx.saved_tensors
        (grad,) = grads
        narrow, along = weight.to(grad.dtype), grad * unit
        grad_weight = None
        if ctx.needs_input_grad[1]:  # not of a world that a controller learns in
            grad_weight = along.reshape(-1, along.shape[-1]).sum(0, dtype=weight.dtype)
        share = (along @ narrow[:, None]) / grad.shape[-1]
        return (grad * narrow).addcmul_(unit, share, value=-1).mul_(scale), grad_weight, None


class _SwiGlu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        gate, up = gate_up.chunk(2, dim=-1)
        return silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        (grad,) = grads
        gate, up = gate_up.chunk(2, dim=-1)
        result = torch.empty_like(gate_up)
        grad_gate, grad_up = result.chunk(2, dim=-1)
        torch.mul(grad, silu(gate), out=grad_up)
        torch.ops.aten.silu_backward.grad_input(grad * up, gate, grad_input=grad_gate)
        return result


def attention(
    q: Tensor, k: Tensor, v: Tensor, block_mask: BlockMask, angles: tuple[Tensor, Tensor] | None
) -> Tensor:
    """Compute `kernels.attention`, in one product under a mask or block by block.

    Autocast is off, since it would cast the scores to float32 and back: softmax sums in float32
    anyway.
    """
    queries, keys = q.shape[2], k.shape[2]
    if angles is not None:
        q = apply_rope(q, *(a[keys - queries :] for a in angles))
        k = apply_rope(k, *angles)
    with torch.autocast(q.device.type, enabled=False):
        if queries == block_mask.block_size == 1 and not q.is_cuda:
            first = (
                0 if block_mask.context_blocks is None else max(0, keys - block_mask.context_blocks)
            )
            q = q * q.shape[-1] ** -0.5
            return _attend_elementwise(q, k[:, :, first:], v[:, :, first:])
        if block_mask.block_size == 1 and keys <= FEW_KEYS and not q.is_cuda:
            return _attend(q * q.shape[-1] ** -0.5, k, v, _mask_bias(block_mask, q, k))
        if _use_sdpa(q, keys, block_mask):
            causal = block_mask.block_size == 1 or block_mask.causal_within_block
            full_context = (
                block_mask.context_blocks is None
                or block_mask.context_blocks * block_mask.block_size >= keys
            )
            if full_context and causal and queries == keys:
                return scaled_dot_product_attention(q, k, v, is_causal=True)
            if full_context and not causal and queries == block_mask.block_size:
                return scaled_dot_product_attention(q, k, v)
            mask = block_mask.mask(queries, keys, q.device)
            return scaled_dot_product_attention(q, k, v, attn_mask=mask)
        q = q * q.shape[-1] ** -0.5
        if _visible_fraction(queries, keys, block_mask) < 0.5:
            return _block_by_block(q, k, v, block_mask)
        # contiguous heads, which all products read faster, those of the backward pass too
        q, k, v = (x.contiguous() for x in (q, k, v))
        return _attend(q, k, v, _mask_bias(block_mask, q, k))


def attention_with_cache(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cache: tuple[Tensor, Tensor],
    block_mask: BlockMask,
    angles: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute `kernels.attention_with_cache`."""
    k, v = concat_cache(cache, k, v)
    return attention(q, k, v, block_mask, angles), k, v


def concat_cache(cache: tuple[Tensor, Tensor], k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Concatenate the cache and the new keys and values, in the dtype of the new ones."""
    k = torch.cat([cache[0].to(k.dtype), k], dim=2)
    return k, torch.cat([cache[1].to(v.dtype), v], dim=2)


def _use_sdpa(q: Tensor, keys: int, block_mask: BlockMask) -> bool:
    """Return whether PyTorch's own attention is the faster choice.

    On a CPU in bfloat16 it is several times slower than a plain softmax; in float32 it is faster
    where most of the scores are visible.
    """
    if block_mask.block_size == 1 or q.is_cuda:
        return True
    return q.dtype == torch.float32 and _visible_fraction(q.shape[2], keys, block_mask) > 0.6


def _visible_fraction(queries: int, keys: int, block_mask: BlockMask) -> float:
    """Compute the visible share of all blocks of scores."""
    blocks, all_blocks = queries // block_mask.block_size, keys // block_mask.block_size
    context = block_mask.context_blocks or all_blocks
    visible = sum(min(context, all_blocks - after) for after in range(blocks))
    return visible / (blocks * all_blocks)


def _block_by_block(q: Tensor, k: Tensor, v: Tensor, block_mask: BlockMask) -> Tensor:
    """Attend block by block, without products of what is masked; q is scaled already."""
    queries, keys, size = q.shape[2], k.shape[2], block_mask.block_size
    causal_block = (
        BlockMask(size, causal_within_block=True) if block_mask.causal_within_block else None
    )
    outputs = []
    for start in range(0, queries, size):
        last = keys - queries + start + size
        first = (
            0
            if block_mask.context_blocks is None
            else max(0, last - block_mask.context_blocks * size)
        )
        query, key = q[:, :, start : start + size], k[:, :, first:last]
        bias = _mask_bias(causal_block, query, key) if causal_block else None
        outputs.append(_attend(query, key, v[:, :, first:last], bias))
    return torch.cat(outputs, dim=2)


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """Compute softmax(q k^T + bias) v."""
    if torch.is_grad_enabled():
        return _Attend.apply(q, k, v, bias)  # type: ignore[return-value]
    return _attention_probs(q, k, bias) @ v


def _attention_probs(q: Tensor, k: Tensor, bias: Tensor | None) -> Tensor:
    """Compute the softmax alone: (B, H, Q, K)."""
    scores = q @ k.transpose(-1, -2)
    return torch.softmax(scores if bias is None else scores + bias, dim=-1)


class _Attend(torch.autograd.Function):
    """Attention that keeps the softmax: the compiler would recompute it in the backward pass, which
    in bfloat16 on CPUs gives NaN gradients of rotated keys at some sizes (torch 2.13)."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        probs = _attention_probs(q, k, bias)
        ctx.save_for_backward(q, k, v, probs)
        return probs @ v

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, probs = ctx.saved_tensors
        (grad,) = grads
        grad_probs = grad @ v.transpose(-1, -2)
        grad_scores = torch.ops.aten._softmax_backward_data(grad_probs, probs, -1, probs.dtype)
        grad_k, grad_v = grad_scores.transpose(-1, -2) @ q, probs.transpose(-1, -2) @ grad
        return grad_scores @ k, grad_k, grad_v, None


def _mask_bias(block_mask: BlockMask, q: Tensor, k: Tensor) -> Tensor:
    """Return what is added to scores, (Q, K): 0 where a key is visible, else minus infinity."""
    mask_args = (block_mask.block_size, block_mask.context_blocks, block_mask.causal_within_block)
    return _bias(q.shape[2], k.shape[2], *mask_args, q.dtype, q.device)


@torch.library.custom_op("dreamstage::mask_bias", mutates_args=())
def _bias(
    queries: int, keys: int, size: int, context: int | None, causal_within_block: bool,
    dtype: torch.dtype, device: torch.device,
) -> Tensor:  # fmt: skip
    """Compute the bias as an operator: the compiler would compare positions for every head again,
    which is slower than the softmax; this way it is called once for all layers."""
    # a copy: the compiler reuses the memory of its inputs once it does not need them
    return _cached_bias(
        BlockMask(size, context, causal_within_block), queries, keys, dtype, device
    ).clone()


@_bias.register_fake
def _(
    queries: int, keys: int, size: int, context: int | None, causal_within_block: bool,
    dtype: torch.dtype, device: torch.device,
) -> Tensor:  # fmt: skip
    return torch.empty(queries, keys, dtype=dtype, device=device)


@lru_cache(maxsize=32)
def _cached_bias(
    block_mask: BlockMask, queries: int, keys: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    masked = ~block_mask.mask(queries, keys, device)
    bias = torch.zeros(queries, keys, dtype=dtype, device=device)
    return bias.masked_fill_(masked, float("-inf"))


def _attend_elementwise(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Compute softmax(q k^T) v without matrix products: faster for one query in each of many heads,
    and the compiler fuses it.  mask: (K,) bool, True where a key is visible."""
    scores = (q[..., None, :] * k[..., None, :, :]).sum(-1)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return (torch.softmax(scores, dim=-1)[..., None] * v[..., None, :, :]).sum(-2)


def decode_attention(q: Tensor, keys: Tensor, values: Tensor, bounds: Tensor) -> Tensor:
    """Compute `kernels.decode_attention`."""
    if q.is_cuda or torch.compiler.is_compiling():
        # a mask, rather than lengths that would have to be read back from the GPU
        row = torch.arange(keys.shape[2], device=q.device)
        mask = (row >= bounds[0]) & (row < bounds[1])
        if q.is_cuda:
            return scaled_dot_product_attention(q, keys, values, attn_mask=mask[None])
        return _attend_elementwise(q * q.shape[-1] ** -0.5, keys, values, mask)
    low, high = bounds.tolist()
    keys, values = keys[:, :, low:high], values[:, :, low:high]
    if q.dtype == torch.bfloat16:  # see _use_sdpa
        return _attend(q * q.shape[-1] ** -0.5, keys, values, None)
    return scaled_dot_product_attention(q, keys, values)


def linear_cross_entropy(
    x: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    before: Tensor | None,
    bonus: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Compute `kernels.linear_cross_entropy` as autocast does; `argmax` is slow in bf16 on CPUs."""
    logits = linear(x, weight, bias)
    if before is not None and bonus is not None:
        logits = logits.scatter_add(-1, before[:, None], bonus[:, None].to(logits.dtype))
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return cross_entropy(wide, target, reduction="none"), logits.detach().max(-1).indices


@torch.no_grad()
def nearest_code(vectors: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute `kernels.nearest_code`, in parts that stay in the cache."""
    vectors = vectors.to(codebook.dtype)
    length = codebook.square().sum(-1)
    parts = [
        torch.addmm(length, part, codebook.T, alpha=-2).argmin(-1) for part in vectors.split(1024)
    ]
    codes = torch.cat(parts)
    # bincount synchronizes with a GPU
    counts = torch.zeros(len(codebook), dtype=torch.long, device=codebook.device)
    counts.scatter_add_(0, codes, torch.ones_like(codes))
    return codes, counts, torch.zeros_like(codebook).index_add_(0, codes, vectors)
