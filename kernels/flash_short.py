"""Attention over short sequences: one tile holds several of them, masked from each other.

A tile fits on the chip as a whole, so that the gradient needs only the inputs of the forward pass,
and memory is read and written once.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.compile_check import CompileCase
from kernels.dispatch import SHORT
from kernels.flash_launch import (
    angles_or,
    attention_case,
    constants,
    in_rows,
    launch,
    log2_scale,
    next_power_of_2,
    padded_head_dim,
    register_gradient,
    rows_after,
    rows_like,
    sizes,
    strides,
)
from kernels.flash_tiles import key_range, load_rotated, load_rows, store_rotated_back, store_rows


@triton.jit
def _row_layout(length, group_size, sequences, TILE: tl.constexpr) -> Any:
    """Return each row's sequence, its position in it, the sequence's rank in the tile, and whether
    the row exists."""
    row = tl.arange(0, TILE)
    rank = row // length
    sequence = tl.program_id(0) * group_size + rank
    return sequence, row % length, rank, (rank < group_size) & (sequence < sequences)


@triton.jit
def _offset(sequence, position, heads, stride_batch, stride_head, stride_row):
    offset = (sequence // heads).to(tl.int64) * stride_batch
    offset += (sequence % heads).to(tl.int64) * stride_head
    return offset + position.to(tl.int64) * stride_row


@triton.jit
def _visible(
    position, rank, key_position, key_rank, key_valid, keys, size, context,
    CAUSAL_WITHIN_BLOCK: tl.constexpr, WINDOWED: tl.constexpr,
):  # fmt: skip
    bounds = key_range(position, keys, size, context, CAUSAL_WITHIN_BLOCK, WINDOWED)
    low, high = bounds
    mask = (rank[:, None] == key_rank[None, :]) & key_valid[None, :]
    mask = mask & (key_position[None, :] < high[:, None])
    if WINDOWED:
        mask = mask & (key_position[None, :] >= low[:, None])
    return mask


@triton.jit
def _probs(query, key, visible, scale, PRECISION: tl.constexpr):
    """Compute the softmax of visible scores, 0 for rows that see nothing."""
    scores = tl.dot(query, tl.trans(key), input_precision=PRECISION) * scale
    scores = tl.where(visible, scores, float("-inf"))
    highest = tl.max(scores, 1)
    highest = tl.where(highest == float("-inf"), 0.0, highest)
    probs = tl.exp2(scores - highest[:, None])
    row_sum = tl.sum(probs, 1)
    return probs / tl.where(row_sum == 0.0, 1.0, row_sum)[:, None]


@triton.jit
def short_kernel(
    q, k, v, past_k, past_v, out, all_k, all_v, cosine, sine,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row,
    past_k_batch, past_k_head, past_k_row, past_v_batch, past_v_head, past_v_row,
    out_batch, out_head, out_row, all_k_batch, all_k_head, all_k_row,
    all_v_batch, all_v_head, all_v_row,
    heads, sequences, queries, keys, group_size, size, context, scale,
    HEAD: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr,
    CAUSAL_WITHIN_BLOCK: tl.constexpr, WINDOWED: tl.constexpr, ROTATE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Let `group_size` whole sequences attend.

    With a past, k and v have as many rows as the queries; the past and they are written one behind
    the other, the keys without rotation.
    """
    of_queries = _row_layout(queries, group_size, sequences, TILE)
    of_keys = _row_layout(keys, group_size, sequences, TILE)
    sequence, row, rank, valid = of_queries
    key_sequence, key_position, key_rank, key_valid = of_keys
    before = keys - queries
    q_at = _offset(sequence, row, heads, q_batch, q_head, q_row)
    own_position, own = key_position, key_valid
    if past_k is not None:
        own_position, own = key_position - before, key_valid & (key_position >= before)
    k_at = _offset(key_sequence, own_position, heads, k_batch, k_head, k_row)
    v_at = _offset(key_sequence, own_position, heads, v_batch, v_head, v_row)
    if ROTATE:
        query = load_rotated(q, q_at, valid, 1, before + row, cosine, sine, HEAD, WIDTH)
        key = load_rotated(k, k_at, own, 1, key_position, cosine, sine, HEAD, WIDTH)
    else:
        query = load_rows(q, q_at, valid, 1, HEAD, WIDTH)
        key = load_rows(k, k_at, own, 1, HEAD, WIDTH)
    value = load_rows(v, v_at, own, 1, HEAD, WIDTH)
    if past_k is not None:
        old = key_valid & (key_position < before)
        at = _offset(key_sequence, key_position, heads, past_k_batch, past_k_head, past_k_row)
        kept = load_rows(k, k_at, own, 1, HEAD, WIDTH) + load_rows(past_k, at, old, 1, HEAD, WIDTH)
        if ROTATE:
            key += load_rotated(past_k, at, old, 1, key_position, cosine, sine, HEAD, WIDTH)
        else:
            key = kept
        to = _offset(key_sequence, key_position, heads, all_k_batch, all_k_head, all_k_row)
        store_rows(all_k, kept, to, key_valid, 1, HEAD, WIDTH)
        at = _offset(key_sequence, key_position, heads, past_v_batch, past_v_head, past_v_row)
        value += load_rows(past_v, at, old, 1, HEAD, WIDTH)
        to = _offset(key_sequence, key_position, heads, all_v_batch, all_v_head, all_v_row)
        store_rows(all_v, value, to, key_valid, 1, HEAD, WIDTH)
    visible = _visible(
        before + row, rank, key_position, key_rank, key_valid, keys, size, context,
        CAUSAL_WITHIN_BLOCK, WINDOWED,
    )  # fmt: skip
    probs = _probs(query, key, visible, scale, PRECISION)
    result = tl.dot(probs.to(value.dtype), value, input_precision=PRECISION)
    at = _offset(sequence, row, heads, out_batch, out_head, out_row)
    store_rows(out, result, at, valid, 1, HEAD, WIDTH)


@triton.jit
def short_backward_kernel(
    q, k, v, grad, grad_q, grad_k, grad_v, cosine, sine,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row,
    grad_batch, grad_head, grad_row,
    grad_q_batch, grad_q_head, grad_q_row, grad_k_batch, grad_k_head, grad_k_row,
    grad_v_batch, grad_v_head, grad_v_row,
    heads, sequences, queries, keys, group_size, size, context, scale, score_scale,
    HEAD: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr,
    CAUSAL_WITHIN_BLOCK: tl.constexpr, WINDOWED: tl.constexpr, ROTATE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Write all gradients of `group_size` whole sequences."""
    of_queries = _row_layout(queries, group_size, sequences, TILE)
    of_keys = _row_layout(keys, group_size, sequences, TILE)
    sequence, row, rank, valid = of_queries
    key_sequence, key_position, key_rank, key_valid = of_keys
    position = keys - queries + row
    q_at = _offset(sequence, row, heads, q_batch, q_head, q_row)
    k_at = _offset(key_sequence, key_position, heads, k_batch, k_head, k_row)
    v_at = _offset(key_sequence, key_position, heads, v_batch, v_head, v_row)
    grad_at = _offset(sequence, row, heads, grad_batch, grad_head, grad_row)
    if ROTATE:
        query = load_rotated(q, q_at, valid, 1, position, cosine, sine, HEAD, WIDTH)
        key = load_rotated(k, k_at, key_valid, 1, key_position, cosine, sine, HEAD, WIDTH)
    else:
        query = load_rows(q, q_at, valid, 1, HEAD, WIDTH)
        key = load_rows(k, k_at, key_valid, 1, HEAD, WIDTH)
    value = load_rows(v, v_at, key_valid, 1, HEAD, WIDTH)
    grad_out = load_rows(grad, grad_at, valid, 1, HEAD, WIDTH)
    visible = _visible(
        position,
        rank,
        key_position,
        key_rank,
        key_valid,
        keys,
        size,
        context,
        CAUSAL_WITHIN_BLOCK,
        WINDOWED,
    )
    probs = _probs(query, key, visible, scale, PRECISION)

    grad_value = tl.dot(tl.trans(probs.to(grad_out.dtype)), grad_out, input_precision=PRECISION)
    at = _offset(key_sequence, key_position, heads, grad_v_batch, grad_v_head, grad_v_row)
    store_rows(grad_v, grad_value, at, key_valid, 1, HEAD, WIDTH)

    grad_probs = tl.dot(grad_out, tl.trans(value), input_precision=PRECISION)
    delta = tl.sum(probs * grad_probs, 1)
    grad_scores = (probs * (grad_probs - delta[:, None]) * score_scale).to(query.dtype)
    grad_query = tl.dot(grad_scores, key, input_precision=PRECISION)
    grad_key = tl.dot(tl.trans(grad_scores), query, input_precision=PRECISION)
    at = _offset(sequence, row, heads, grad_q_batch, grad_q_head, grad_q_row)
    to = _offset(key_sequence, key_position, heads, grad_k_batch, grad_k_head, grad_k_row)
    if ROTATE:
        store_rotated_back(grad_q, grad_query, at, valid, 1, position, cosine, sine, HEAD, WIDTH)
        store_rotated_back(
            grad_k, grad_key, to, key_valid, 1, key_position, cosine, sine, HEAD, WIDTH
        )
    else:
        store_rows(grad_q, grad_query, at, valid, 1, HEAD, WIDTH)
        store_rows(grad_k, grad_key, to, key_valid, 1, HEAD, WIDTH)


def short_warps(width: int, itemsize: int) -> int:
    """Choose the warps of a program."""
    return 4 if width <= 64 and itemsize <= 2 else 8


@torch.library.custom_op("dreamstage::short_attention", mutates_args=())
def short_attention(
    q: Tensor, k: Tensor, v: Tensor, cosine: Tensor | None, sine: Tensor | None,
    size: int, context: int | None, causal_within_block: bool,
) -> Tensor:  # fmt: skip
    out = rows_like(q)
    _launch_short(
        q, k, v, None, None, out, None, None, cosine, sine, size, context, causal_within_block
    )
    return out


@short_attention.register_fake
def _(q, k, v, cosine, sine, size, context, causal_within_block):
    return rows_like(q)


@torch.library.custom_op("dreamstage::short_attention_with_cache", mutates_args=())
def short_attention_with_cache(
    q: Tensor, k: Tensor, v: Tensor, past_k: Tensor, past_v: Tensor,
    cosine: Tensor | None, sine: Tensor | None, size: int, context: int | None,
    causal_within_block: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the output and all keys and values, those of the past first, without gradients."""
    out, all_k, all_v = rows_like(q), rows_after(past_k, k), rows_after(past_v, v)
    _launch_short(
        q, k, v, past_k, past_v, out, all_k, all_v, cosine, sine, size, context, causal_within_block
    )
    return out, all_k, all_v


@short_attention_with_cache.register_fake
def _(q, k, v, past_k, past_v, cosine, sine, size, context, causal_within_block):
    return rows_like(q), rows_after(past_k, k), rows_after(past_v, v)


def _launch_short(
    q: Tensor, k: Tensor, v: Tensor, past_k: Tensor | None, past_v: Tensor | None,
    out: Tensor, all_k: Tensor | None, all_v: Tensor | None,
    cosine: Tensor | None, sine: Tensor | None, size: int, context: int | None,
    causal_within_block: bool,
) -> None:  # fmt: skip
    if not q.numel():
        return
    keys = k if all_k is None else all_k
    group_size = SHORT // keys.shape[2]
    launch(
        short_kernel, -(-q.shape[0] * q.shape[1] // group_size),
        q, k, v, past_k, past_v, out, all_k, all_v, *angles_or(q, cosine, sine),
        *strides(q, k, v, past_k, past_v, out, all_k, all_v), *sizes(q, keys, group_size),
        size, context or 0, log2_scale(q),
        TILE=SHORT, num_warps=short_warps(padded_head_dim(q), q.element_size()),
        **constants(q, cosine, context, causal_within_block),
    )  # fmt: skip


@torch.library.custom_op("dreamstage::short_attention_backward", mutates_args=())
def short_attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, cosine: Tensor | None, sine: Tensor | None,
    size: int, context: int | None, causal_within_block: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    grad_q, grad_k, grad_v = (rows_like(x) for x in (q, k, v))
    if not q.numel():
        return grad_q, grad_k.zero_(), grad_v.zero_()
    grad = in_rows(grad)
    group_size = SHORT // k.shape[2]
    launch(
        short_backward_kernel, -(-q.shape[0] * q.shape[1] // group_size),
        q, k, v, grad, grad_q, grad_k, grad_v, *angles_or(q, cosine, sine),
        *strides(q, k, v, grad, grad_q, grad_k, grad_v), *sizes(q, k, group_size),
        size, context or 0, log2_scale(q), q.shape[3] ** -0.5,
        TILE=SHORT, num_warps=short_warps(padded_head_dim(q), q.element_size()),
        **constants(q, cosine, context, causal_within_block),
    )  # fmt: skip
    return grad_q, grad_k, grad_v


@short_attention_backward.register_fake
def _(grad, q, k, v, cosine, sine, size, context, causal_within_block):
    return rows_like(q), rows_like(k), rows_like(v)


register_gradient(short_attention, short_attention_backward)


def _short_cases(
    head: int, programs: tuple[int, int, int], note: str = "", dtype: str = "bf16", **flags: bool
) -> list[CompileCase]:
    """List forward, forward with a past, and backward, of attention through time."""
    more: dict[str, Any] = dict(HEAD=head, TILE=SHORT, dtype=dtype, wgmma=dtype == "bf16") | flags
    more |= dict(num_warps=short_warps(next_power_of_2(head), 2 if dtype == "bf16" else 4), size=1)
    clip: dict[str, Any] = dict(queries=16, keys=16, group_size=SHORT // 16)
    absent = ("past_k", "past_v", "all_k", "all_v")
    without_past: dict[str, Any] = dict.fromkeys(absent)
    without_past |= {f"{x}_{axis}": 0 for x in absent for axis in ("batch", "head", "row")}
    forward, with_cache, backward = programs
    return [
        attention_case(
            f"short_attention{note}", short_kernel, forward, "q k v out", "q k v out",
            **more, **clip, **without_past,
        ),
        attention_case(
            f"short_attention{note}, with cache", short_kernel, with_cache,
            "q k v past_k past_v out all_k all_v", "q k v past_k past_v out all_k all_v",
            queries=1, keys=3, group_size=SHORT // 3, **more,
        ),
        attention_case(
            f"short_attention{note}, gradient", short_backward_kernel, backward,
            "q k v grad grad_q grad_k grad_v", "q k v grad grad_q grad_k grad_v", **more, **clip,
        ),
    ]  # fmt: skip


COMPILE_CASES = [
    *_short_cases(64, (4, 2, 3)),
    *_short_cases(
        64, (5, 5, 3), ", token by token, no angles", CAUSAL_WITHIN_BLOCK=True, ROTATE=False
    ),
    *_short_cases(64, (2, 1, 1), ", float32", dtype="fp32"),
    *_short_cases(128, (2, 1, 1)),
]
