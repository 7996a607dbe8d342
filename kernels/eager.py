"""Plain PyTorch with the gradient written out, where autograd would keep or copy too much.

Autograd through the definition of RMSNorm keeps float32 copies of every step, which took five to
ten times as long on a CPU in bfloat16 (5,200 rows of 128).  SwiGLU keeps nothing but its input.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear, scaled_dot_product_attention, silu

from kernels.reference import View, rotate

FEW = 64  # keys; PyTorch's attention on a CPU takes two to seven times as long as a softmax of them


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """As `kernels.rms_norm`; the mean square is summed in float32 at least."""
    if not (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)):
        # one call: on few rows, starting the operations is what takes time
        return torch.nn.functional.rms_norm(x, weight.shape, weight.to(x.dtype), eps)
    return _RmsNorm.apply(x, weight, eps)  # type: ignore[return-value]


def swiglu(gate_up: Tensor) -> Tensor:
    """As `kernels.swiglu`."""
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
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        unit, weight, scale = ctx.saved_tensors
        (grad,) = grads
        narrow = weight.to(grad.dtype)
        along = grad * unit
        for_weight = along.reshape(-1, along.shape[-1]).sum(0, dtype=weight.dtype)
        share = (along @ narrow[:, None]) / grad.shape[-1]
        for_x = (grad * narrow).addcmul_(unit, share, value=-1).mul_(scale)
        return for_x, for_weight, None


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
        for_gate, for_up = result.chunk(2, dim=-1)
        torch.mul(grad, silu(gate), out=for_up)
        torch.ops.aten.silu_backward.grad_input(grad * up, gate, grad_input=for_gate)
        return result


def attention(
    q: Tensor, k: Tensor, v: Tensor, view: View, angles: tuple[Tensor, Tensor] | None
) -> Tensor:
    """As `kernels.attention`, in one product under a mask or block by block.

    Outside autocast, which would take the scores to float32 and back: softmax adds up in float32
    whatever it is given.
    """
    queries, keys = q.shape[2], k.shape[2]
    if angles is not None:
        q = rotate(q, *(a[keys - queries :] for a in angles))
        k = rotate(k, *angles)
    with torch.autocast(q.device.type, enabled=False):
        if queries == view.size == 1 and not q.is_cuda:
            first = 0 if view.context is None else max(0, keys - view.context)
            q = q * q.shape[-1] ** -0.5
            return _attend_by_sums(q, k[:, :, first:], v[:, :, first:])
        if view.size == 1 and keys <= FEW and not q.is_cuda:
            return _attend(q * q.shape[-1] ** -0.5, k, v, _bias_of(view, q, k))
        if _at_once(q, keys, view):
            causal = view.size == 1 or view.causal_inside
            whole = view.context is None or view.context * view.size >= keys
            if whole and causal and queries == keys:
                return scaled_dot_product_attention(q, k, v, is_causal=True)
            if whole and not causal and queries == view.size:
                return scaled_dot_product_attention(q, k, v)
            seen = view.mask(queries, keys, q.device)
            return scaled_dot_product_attention(q, k, v, attn_mask=seen)
        q = q * q.shape[-1] ** -0.5
        if _share_in_view(queries, keys, view) < 0.5:
            return _block_by_block(q, k, v, view)
        # heads in rows of their own, which all products read faster, those of the way back too
        q, k, v = (x.contiguous() for x in (q, k, v))
        return _attend(q, k, v, _bias_of(view, q, k))


def attention_after(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    past: tuple[Tensor, Tensor],
    view: View,
    angles: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `kernels.attention_after`."""
    k, v = joined(past, k, v)
    return attention(q, k, v, view, angles), k, v


def joined(past: tuple[Tensor, Tensor], k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values with those of the past before them, in the type of the new."""
    k = torch.cat([past[0].to(k.dtype), k], dim=2)
    return k, torch.cat([past[1].to(v.dtype), v], dim=2)


def _at_once(q: Tensor, keys: int, view: View) -> bool:
    """Whether PyTorch's own attention is the better way.

    On a CPU in bfloat16 it is several times slower than a plain softmax; in float32 it is faster
    where most of what it multiplies is in view.
    """
    if view.size == 1 or q.is_cuda:
        return True
    return q.dtype == torch.float32 and _share_in_view(q.shape[2], keys, view) > 0.6


def _share_in_view(queries: int, keys: int, view: View) -> float:
    """How much of what all queries and keys make is in view, by blocks."""
    blocks, all_blocks = queries // view.size, keys // view.size
    context = view.context or all_blocks
    seen = sum(min(context, all_blocks - after) for after in range(blocks))
    return seen / (blocks * all_blocks)


def _block_by_block(q: Tensor, k: Tensor, v: Tensor, view: View) -> Tensor:
    """Nothing out of view is ever multiplied; q is scaled."""
    queries, keys, size = q.shape[2], k.shape[2], view.size
    inside = View(size, causal_inside=True) if view.causal_inside else None
    outputs = []
    for start in range(0, queries, size):
        last = keys - queries + start + size
        first = 0 if view.context is None else max(0, last - view.context * size)
        query, key = q[:, :, start : start + size], k[:, :, first:last]
        bias = _bias_of(inside, query, key) if inside else None
        outputs.append(_attend(query, key, v[:, :, first:last], bias))
    return torch.cat(outputs, dim=2)


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """softmax(q k^T + bias) v."""
    if torch.is_grad_enabled():
        return _Attend.apply(q, k, v, bias)  # type: ignore[return-value]
    return _share(q, k, bias) @ v


def _share(q: Tensor, k: Tensor, bias: Tensor | None) -> Tensor:
    """The softmax alone: how much of each key a query takes, (B, H, Q, K)."""
    scores = q @ k.transpose(-1, -2)
    return torch.softmax(scores if bias is None else scores + bias, dim=-1)


class _Attend(torch.autograd.Function):
    """With the softmax kept: left to itself the compiler computes it again on the way back, and in
    bfloat16 makes NaN of gradients of keys that were turned, at some sizes (torch 2.13, CPUs)."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        share = _share(q, k, bias)
        ctx.save_for_backward(q, k, v, share)
        return share @ v

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, share = ctx.saved_tensors
        (grad,) = grads
        of_share = grad @ v.transpose(-1, -2)
        of_scores = torch.ops.aten._softmax_backward_data(of_share, share, -1, share.dtype)
        for_k, for_v = of_scores.transpose(-1, -2) @ q, share.transpose(-1, -2) @ grad
        return of_scores @ k, for_k, for_v, None


def _bias_of(view: View, q: Tensor, k: Tensor) -> Tensor:
    """What is added to scores, (Q, K): 0 where the view lets see, else minus infinity."""
    of_view = (view.size, view.context, view.causal_inside)
    return _bias(q.shape[2], k.shape[2], *of_view, q.dtype, q.device)


@torch.library.custom_op("dreamstage::view_bias", mutates_args=())
def _bias(
    queries: int, keys: int, size: int, context: int | None, causal_inside: bool,
    kind: torch.dtype, device: torch.device,
) -> Tensor:  # fmt: skip
    """An operator, so that the compiler reads numbers instead of comparing places for every head
    anew, which took twice as long as the softmax; it is called once for all layers."""
    # a copy: the compiler writes into what it was given when it needs it no more
    return _kept_bias(View(size, context, causal_inside), queries, keys, kind, device).clone()


@_bias.register_fake
def _(
    queries: int, keys: int, size: int, context: int | None, causal_inside: bool,
    kind: torch.dtype, device: torch.device,
) -> Tensor:  # fmt: skip
    return torch.empty(queries, keys, dtype=kind, device=device)


@lru_cache(maxsize=32)
def _kept_bias(
    view: View, queries: int, keys: int, kind: torch.dtype, device: torch.device
) -> Tensor:
    unseen = ~view.mask(queries, keys, device)
    bias = torch.zeros(queries, keys, dtype=kind, device=device)
    return bias.masked_fill_(unseen, float("-inf"))


def _attend_by_sums(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None = None) -> Tensor:
    """softmax(q k^T) v without products of matrices: quicker for one query in each of many heads,
    and the compiler fuses it.  `seen`: (K,) bool."""
    scores = (q[..., None, :] * k[..., None, :, :]).sum(-1)
    if seen is not None:
        scores = scores.masked_fill(~seen, float("-inf"))
    return (torch.softmax(scores, dim=-1)[..., None] * v[..., None, :, :]).sum(-2)


def attend_cache(q: Tensor, keys: Tensor, values: Tensor, bounds: Tensor) -> Tensor:
    """As `kernels.attend_cache`."""
    if q.is_cuda or torch.compiler.is_compiling():
        # a mask, rather than lengths that would have to come back from the GPU
        row = torch.arange(keys.shape[2], device=q.device)
        seen = (row >= bounds[0]) & (row < bounds[1])
        if q.is_cuda:
            return scaled_dot_product_attention(q, keys, values, attn_mask=seen[None])
        return _attend_by_sums(q * q.shape[-1] ** -0.5, keys, values, seen)
    low, high = bounds.tolist()
    keys, values = keys[:, :, low:high], values[:, :, low:high]
    if q.dtype == torch.bfloat16:  # see _at_once
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
    """As `kernels.linear_cross_entropy`, the product in the precision of autocast."""
    logits = linear(x, weight, bias)
    if before is not None and bonus is not None:
        logits = logits.scatter_add(-1, before[:, None], bonus[:, None].to(logits.dtype))
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return cross_entropy(wide, target, reduction="none"), logits.detach().argmax(-1)


@torch.no_grad()
def assign(vectors: Tensor, book: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As `kernels.assign`, in parts that stay in the cache."""
    vectors = vectors.to(book.dtype)
    length = book.square().sum(-1)
    parts = [torch.addmm(length, part, book.T, alpha=-2).argmin(-1) for part in vectors.split(1024)]
    codes = torch.cat(parts)
    # bincount waits for a GPU
    counts = torch.zeros(len(book), dtype=torch.long, device=book.device)
    counts.scatter_add_(0, codes, torch.ones_like(codes))
    return codes, counts, torch.zeros_like(book).index_add_(0, codes, vectors)
