"""Attention over short sequences: one tile holds several of them, which do not see each other.

Everything about a tile fits on the chip at once, so that the gradient needs nothing of the forward
pass but its inputs, and memory is read and written once.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from kernels.flash_tiles import key_range, load_rotated, load_rows, store_rotated_back, store_rows


@triton.jit
def _row_layout(length, group_size, sequences, TILE: tl.constexpr) -> Any:
    """Say of each row its sequence, its position there, its rank in the tile, and if there is one."""
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
    """Softmax of the scores that are seen, 0 for rows that see nothing."""
    scores = tl.dot(query, tl.trans(key), input_precision=PRECISION) * scale
    scores = tl.where(visible, scores, float("-inf"))
    highest = tl.max(scores, 1)
    highest = tl.where(highest == float("-inf"), 0.0, highest)
    chances = tl.exp2(scores - highest[:, None])
    weight = tl.sum(chances, 1)
    return chances / tl.where(weight == 0.0, 1.0, weight)[:, None]


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

    With a past, k and v are as many as the queries, and all of both are written behind each other,
    the keys as they came.
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
