"""Attention by tiles of queries, with a running softmax (Dao, arXiv:2307.08691, algorithm 1)."""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.flash_tiles import (
    assign_tile,
    head_start,
    key_range,
    load_rotated,
    load_rows,
    store_rows,
)


@triton.jit
def rotate_kernel(
    x, rotated, cosine, sine, stride_batch, stride_head, stride_row, heads, rows, past,
    HEAD: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Write (B, H, S, E) rotated by the angles of its positions, which begin at `past`."""
    tiles = tl.cdiv(rows, ROWS)
    sequence, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    first = tile.to(tl.int64) * ROWS
    row = tl.arange(0, ROWS)
    valid = first + row < rows
    start = head_start(x, sequence, heads, stride_batch, stride_head) + first * stride_row
    position = past + first + row
    values = load_rotated(start, row, valid, stride_row, position, cosine, sine, HEAD, WIDTH)
    to = rotated + (sequence.to(tl.int64) * rows + first) * HEAD
    store_rows(to, values, row, valid, HEAD, HEAD, WIDTH)


@triton.jit
def forward_kernel(
    q, k, v, out, logs, cosine, sine,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row,
    out_batch, out_head, out_row,
    heads, sequences, queries, keys, group_size, size, context, scale,
    HEAD: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    CAUSAL_WITHIN_BLOCK: tl.constexpr, WINDOWED: tl.constexpr, ROTATE: tl.constexpr,
    ROTATE_KEYS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Let ROWS queries of a head attend.  logs: (B * H, Q), log2 of the sum of 2 ** scores.

    `scale` includes log2(e), so that the softmax can use powers of two.
    """
    tiles = tl.cdiv(queries, ROWS)
    sequence, rank = assign_tile(tl.program_id(0), tiles, sequences, group_size)
    first = (tiles - 1 - rank) * ROWS  # the last queries see most
    past = keys - queries
    offset = tl.cast(first, tl.int64)
    row = tl.arange(0, ROWS)
    valid = first + row < queries
    position = tl.minimum(past + first + row, keys - 1)
    q_start = head_start(q, sequence, heads, q_batch, q_head) + offset * q_row
    to = head_start(out, sequence, heads, out_batch, out_head) + offset * out_row
    if ROTATE:
        query = load_rotated(q_start, row, valid, q_row, position, cosine, sine, HEAD, WIDTH)
        # stored to the rows of the output and loaded again: it then lies in shared memory, and not
        # in registers, of which the products have too few
        store_rows(to, query, row, valid, out_row, HEAD, WIDTH)
        tl.debug_barrier()
        query = load_rows(to, row, valid, out_row, HEAD, WIDTH)
    else:
        query = load_rows(q_start, row, valid, q_row, HEAD, WIDTH)

    last = tl.minimum(past + first + ROWS, keys) - 1
    bottom, whole_top = key_range(past + first, keys, size, context, CAUSAL_WITHIN_BLOCK, WINDOWED)
    whole_bottom, top = key_range(last, keys, size, context, CAUSAL_WITHIN_BLOCK, WINDOWED)
    low, high = key_range(position, keys, size, context, CAUSAL_WITHIN_BLOCK, WINDOWED)
    k_start = head_start(k, sequence, heads, k_batch, k_head)
    v_start = head_start(v, sequence, heads, v_batch, v_head)
    column = tl.arange(0, COLUMNS)
    acc = tl.zeros((ROWS, WIDTH), tl.float32)
    row_sum = tl.zeros((ROWS,), tl.float32)
    row_max = tl.full((ROWS,), float("-inf"), tl.float32)
    start = bottom // COLUMNS * COLUMNS
    tl.assume(start < top)  # else ptxas lets every matrix instruction wait for the one before
    for from_key in tl.range(start, top, COLUMNS):
        key_position = from_key + column
        here = key_position < keys
        k_tile = k_start + tl.cast(from_key, tl.int64) * k_row
        if ROTATE_KEYS:
            key = load_rotated(k_tile, column, here, k_row, key_position, cosine, sine, HEAD, WIDTH)
        else:
            key = load_rows(k_tile, column, here, k_row, HEAD, WIDTH)
        scores = tl.dot(query, tl.trans(key), input_precision=PRECISION)
        if (from_key < whole_bottom) | (from_key + COLUMNS > whole_top):
            visible = key_position[None, :] < high[:, None]
            if WINDOWED:
                visible = visible & (key_position[None, :] >= low[:, None])
            scores = tl.where(visible, scores, float("-inf"))
        new_max = tl.maximum(row_max, tl.max(scores, 1) * scale)
        base = new_max
        if WINDOWED:  # rows without a visible key yet: no -inf - -inf
            base = tl.where(new_max == float("-inf"), 0.0, new_max)
        probs = tl.exp2(scores * scale - base[:, None])
        rescale = tl.exp2(row_max - base)
        row_sum = row_sum * rescale + tl.sum(probs, 1)
        acc = acc * rescale[:, None]
        v_tile = v_start + tl.cast(from_key, tl.int64) * v_row
        value = load_rows(v_tile, column, here, v_row, HEAD, WIDTH)
        acc = tl.dot(probs.to(value.dtype), value, acc, input_precision=PRECISION)
        row_max = new_max

    store_rows(to, acc / row_sum[:, None], row, valid, out_row, HEAD, WIDTH)
    log_rows = logs + sequence.to(tl.int64) * queries + first + row
    tl.store(log_rows, row_max + tl.log2(row_sum), mask=valid)
