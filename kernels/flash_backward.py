"""Gradients of attention by tiles: of keys and values in one kernel, of queries in another, so that
nothing is added up in memory (Dao, arXiv:2307.08691, algorithm 2)."""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.flash_tiles import (
    assign_tile,
    head_start,
    key_range,
    load_rows,
    store_rotated_back,
    store_rows,
)


@triton.jit
def delta_kernel(
    out, grad, delta,
    out_batch, out_head, out_row, grad_batch, grad_head, grad_row, heads, queries,
    HEAD: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Sum gradient * output over each row: two (B, H, Q, E) -> (B * H, Q)."""
    tiles = tl.cdiv(queries, ROWS)
    sequence, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    first = tile.to(tl.int64) * ROWS
    row = tl.arange(0, ROWS)
    valid = first + row < queries
    out_start = head_start(out, sequence, heads, out_batch, out_head) + first * out_row
    grad_start = head_start(grad, sequence, heads, grad_batch, grad_head) + first * grad_row
    result = load_rows(out_start, row, valid, out_row, HEAD, WIDTH).to(tl.float32)
    grad_rows = load_rows(grad_start, row, valid, grad_row, HEAD, WIDTH).to(tl.float32)
    to = delta + sequence.to(tl.int64) * queries + first + row
    tl.store(to, tl.sum(result * grad_rows, 1), mask=valid)


@triton.jit
def backward_keys_kernel(
    q, k, v, grad, logs, delta, grad_k, grad_v, cosine, sine,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row,
    grad_batch, grad_head, grad_row,
    grad_k_batch, grad_k_head, grad_k_row, grad_v_batch, grad_v_head, grad_v_row,
    heads, sequences, queries, keys, group_size, size, context, scale, score_scale,
    HEAD: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    CAUSAL_WITHIN_BLOCK: tl.constexpr, WINDOWED: tl.constexpr, ROTATE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Write the gradients of COLUMNS keys and values of a head; q and k are rotated already."""
    tiles = tl.cdiv(keys, COLUMNS)
    sequence, rank = assign_tile(tl.program_id(0), tiles, sequences, group_size)
    first = rank * COLUMNS  # the first keys have the most queries
    offset = tl.cast(first, tl.int64)
    past = keys - queries
    column = tl.arange(0, COLUMNS)
    position = first + column
    valid = position < keys
    k_start = head_start(k, sequence, heads, k_batch, k_head) + offset * k_row
    v_start = head_start(v, sequence, heads, v_batch, v_head) + offset * v_row
    key = load_rows(k_start, column, valid, k_row, HEAD, WIDTH)
    value = load_rows(v_start, column, valid, v_row, HEAD, WIDTH)

    # queries that see some key of the tile: bottom ... top; all of them: whole_bottom ... whole_top
    last = tl.minimum(first + COLUMNS, keys) - 1
    if CAUSAL_WITHIN_BLOCK:
        bottom, whole_bottom = first, last
    else:
        bottom, whole_bottom = first // size * size, last // size * size
    top = keys
    if WINDOWED:
        top = tl.minimum((last // size + context) * size, keys)
        whole_top = (first // size + context) * size

    q_start = head_start(q, sequence, heads, q_batch, q_head)
    grad_start = head_start(grad, sequence, heads, grad_batch, grad_head)
    log_start = logs + sequence.to(tl.int64) * queries
    delta_start = delta + sequence.to(tl.int64) * queries
    row = tl.arange(0, ROWS)
    grad_key = tl.zeros((COLUMNS, WIDTH), tl.float32)
    grad_value = tl.zeros((COLUMNS, WIDTH), tl.float32)
    start = tl.maximum(bottom - past, 0) // ROWS * ROWS
    stop = tl.maximum(top - past, start + 1)  # at least one iteration, visible or not
    tl.assume(start < stop)  # as in the forward kernel
    for from_query in tl.range(start, stop, ROWS):
        here = from_query + row < queries
        q_tile = q_start + tl.cast(from_query, tl.int64) * q_row
        query = load_rows(q_tile, row, here, q_row, HEAD, WIDTH)
        log = tl.load(log_start + from_query + row, mask=here, other=float("inf"))
        scores = tl.dot(key, tl.trans(query), input_precision=PRECISION)
        probs = tl.exp2(scores * scale - log[None, :])
        at = past + from_query
        edge = at < whole_bottom  # at the other end, a query that does not exist has probability 0
        if WINDOWED:
            edge = edge | (at + ROWS > whole_top)
        if edge:
            low, high = key_range(at + row, keys, size, context, CAUSAL_WITHIN_BLOCK, WINDOWED)
            visible = position[:, None] < high[None, :]
            if WINDOWED:
                visible = visible & (position[:, None] >= low[None, :])
            probs = tl.where(visible, probs, 0.0)
        grad_tile = grad_start + tl.cast(from_query, tl.int64) * grad_row
        grad_out = load_rows(grad_tile, row, here, grad_row, HEAD, WIDTH)
        grad_probs = tl.dot(value, tl.trans(grad_out), input_precision=PRECISION)
        grad_value = tl.dot(
            probs.to(grad_out.dtype), grad_out, grad_value, input_precision=PRECISION
        )
        delta_row = tl.load(delta_start + from_query + row, mask=here, other=0.0)
        grad_scores = probs * (grad_probs - delta_row[None, :])
        grad_key = tl.dot(grad_scores.to(query.dtype), query, grad_key, input_precision=PRECISION)

    to = head_start(grad_v, sequence, heads, grad_v_batch, grad_v_head) + offset * grad_v_row
    store_rows(to, grad_value, column, valid, grad_v_row, HEAD, WIDTH)
    to = head_start(grad_k, sequence, heads, grad_k_batch, grad_k_head) + offset * grad_k_row
    grad_key = grad_key * score_scale
    if ROTATE:
        store_rotated_back(
            to, grad_key, column, valid, grad_k_row, position, cosine, sine, HEAD, WIDTH
        )
    else:
        store_rows(to, grad_key, column, valid, grad_k_row, HEAD, WIDTH)


@triton.jit
def backward_queries_kernel(
    q, k, v, grad, logs, delta, grad_q, cosine, sine,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row,
    grad_batch, grad_head, grad_row, grad_q_batch, grad_q_head, grad_q_row,
    heads, sequences, queries, keys, group_size, size, context, scale, score_scale,
    HEAD: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    CAUSAL_WITHIN_BLOCK: tl.constexpr, WINDOWED: tl.constexpr, ROTATE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Write the gradients of ROWS queries of a head; q and k are rotated already."""
    tiles = tl.cdiv(queries, ROWS)
    sequence, rank = assign_tile(tl.program_id(0), tiles, sequences, group_size)
    first = (tiles - 1 - rank) * ROWS
    past = keys - queries
    offset = tl.cast(first, tl.int64)
    row = tl.arange(0, ROWS)
    valid = first + row < queries
    position = tl.minimum(past + first + row, keys - 1)
    q_start = head_start(q, sequence, heads, q_batch, q_head) + offset * q_row
    grad_start = head_start(grad, sequence, heads, grad_batch, grad_head) + offset * grad_row
    query = load_rows(q_start, row, valid, q_row, HEAD, WIDTH)
    grad_out = load_rows(grad_start, row, valid, grad_row, HEAD, WIDTH)
    at = sequence.to(tl.int64) * queries + first + row
    log = tl.load(logs + at, mask=valid, other=float("inf"))
    delta_row = tl.load(delta + at, mask=valid, other=0.0)

    # as in the forward kernel
    last = tl.minimum(past + first + ROWS, keys) - 1
    bottom, whole_top = key_range(past + first, keys, size, context, CAUSAL_WITHIN_BLOCK, WINDOWED)
    whole_bottom, top = key_range(last, keys, size, context, CAUSAL_WITHIN_BLOCK, WINDOWED)
    low, high = key_range(position, keys, size, context, CAUSAL_WITHIN_BLOCK, WINDOWED)
    k_start = head_start(k, sequence, heads, k_batch, k_head)
    v_start = head_start(v, sequence, heads, v_batch, v_head)
    column = tl.arange(0, COLUMNS)
    grad_query = tl.zeros((ROWS, WIDTH), tl.float32)
    start = bottom // COLUMNS * COLUMNS
    tl.assume(start < top)  # as in the forward kernel
    for from_key in tl.range(start, top, COLUMNS):
        key_position = from_key + column
        here = key_position < keys
        k_tile = k_start + tl.cast(from_key, tl.int64) * k_row
        key = load_rows(k_tile, column, here, k_row, HEAD, WIDTH)
        scores = tl.dot(query, tl.trans(key), input_precision=PRECISION)
        probs = tl.exp2(scores * scale - log[:, None])
        if (from_key < whole_bottom) | (from_key + COLUMNS > whole_top):
            visible = key_position[None, :] < high[:, None]
            if WINDOWED:
                visible = visible & (key_position[None, :] >= low[:, None])
            probs = tl.where(visible, probs, 0.0)
        v_tile = v_start + tl.cast(from_key, tl.int64) * v_row
        value = load_rows(v_tile, column, here, v_row, HEAD, WIDTH)
        grad_probs = tl.dot(grad_out, tl.trans(value), input_precision=PRECISION)
        grad_scores = probs * (grad_probs - delta_row[:, None])
        grad_query = tl.dot(grad_scores.to(key.dtype), key, grad_query, input_precision=PRECISION)

    to = head_start(grad_q, sequence, heads, grad_q_batch, grad_q_head) + offset * grad_q_row
    grad_query = grad_query * score_scale
    if ROTATE:
        store_rotated_back(
            to, grad_query, row, valid, grad_q_row, position, cosine, sine, HEAD, WIDTH
        )
    else:
        store_rows(to, grad_query, row, valid, grad_q_row, HEAD, WIDTH)
