"""What every attention kernel does with a tile: find it, load it, turn it, and see who sees it.

A row of a head holds HEAD numbers, WIDTH with padding (a power of two).  Each half of a row is
padded for itself, so that the pairs RoPE turns always lie WIDTH / 2 apart.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl


@triton.jit
def head_start(x, sequence, heads, stride_batch, stride_head):
    """Point at the first row of one head of one batch entry."""
    batch, head = (sequence // heads).to(tl.int64), (sequence % heads).to(tl.int64)
    return x + batch * stride_batch + head * stride_head


@triton.jit
def assign_tile(program, tiles, sequences, group_size):
    """Give each program its sequence and the rank of its tile, the heaviest having rank 0.

    `group_size` sequences at a time, so that what their programs read again is still in the L2 cache.
    """
    section = program // (tiles * group_size)
    within = program - section * tiles * group_size
    first = section * group_size
    here = tl.minimum(group_size, sequences - first)
    return first + within % here, within // here


@triton.jit
def key_range(
    position, keys, size, context, CAUSAL_WITHIN_BLOCK: tl.constexpr, WINDOWED: tl.constexpr
) -> Any:
    """Say from which key up to which a query at `position` sees."""
    block = position // size
    low = position * 0
    if WINDOWED:
        low = tl.maximum(block - context + 1, 0) * size
    high = position + 1
    if not CAUSAL_WITHIN_BLOCK:
        high = tl.minimum(block * size + size, keys)
    return low, high


@triton.jit
def _columns(HEAD: tl.constexpr, WIDTH: tl.constexpr) -> Any:
    """Say where in a row each padded column lies, and where its pair's angle lies in a row."""
    column = tl.arange(0, WIDTH)
    angle = column % (WIDTH // 2)
    return column // (WIDTH // 2) * (HEAD // 2) + angle, angle


@triton.jit
def _load_mask(valid, angle, HEAD: tl.constexpr, WIDTH: tl.constexpr):
    inside = valid[:, None]
    if HEAD < WIDTH:
        inside = inside & (angle < HEAD // 2)[None, :]
    return inside


@triton.jit
def load_rows(start, row, valid, stride, HEAD: tl.constexpr, WIDTH: tl.constexpr):
    """Load rows as (ROWS, WIDTH), with 0 where they are not valid."""
    columns = _columns(HEAD, WIDTH)
    column, angle = columns
    pointers = start + row[:, None] * stride + column[None, :]
    return tl.load(pointers, mask=_load_mask(valid, angle, HEAD, WIDTH), other=0.0)


@triton.jit
def load_rotated(
    start, row, valid, stride, position, cosine, sine, HEAD: tl.constexpr, WIDTH: tl.constexpr
):
    """Load rows, rotated by the angles of their places."""
    columns = _columns(HEAD, WIDTH)
    column, angle = columns
    inside = _load_mask(valid, angle, HEAD, WIDTH)
    # the other of a pair comes from the cache: cheaper than changing threads
    other = (1 - tl.arange(0, WIDTH) // (WIDTH // 2)) * (HEAD // 2) + angle
    sign = (tl.arange(0, WIDTH) // (WIDTH // 2) * 2 - 1).to(tl.float32)
    x = tl.load(start + row[:, None] * stride + column[None, :], mask=inside, other=0.0)
    pair = tl.load(start + row[:, None] * stride + other[None, :], mask=inside, other=0.0)
    angle_offset = position[:, None] * (HEAD // 2) + angle[None, :]
    cos = tl.load(cosine + angle_offset, mask=inside, other=0.0).to(tl.float32)
    sin = tl.load(sine + angle_offset, mask=inside, other=0.0).to(tl.float32)
    return (x.to(tl.float32) * cos + pair.to(tl.float32) * sin * sign[None, :]).to(x.dtype)


@triton.jit
def store_rows(start, x, row, valid, stride, HEAD: tl.constexpr, WIDTH: tl.constexpr):
    """Store (ROWS, WIDTH) as rows."""
    columns = _columns(HEAD, WIDTH)
    column, angle = columns
    pointers = start + row[:, None] * stride + column[None, :]
    tl.store(pointers, x.to(start.dtype.element_ty), mask=_load_mask(valid, angle, HEAD, WIDTH))


@triton.jit
def store_rotated_back(
    start, x, row, valid, stride, position, cosine, sine, HEAD: tl.constexpr, WIDTH: tl.constexpr
):
    """Store (ROWS, WIDTH) as rows, rotated by the opposite of the angles of their places."""
    halves = tl.permute(tl.reshape(x, (x.shape[0], 2, WIDTH // 2)), (0, 2, 1))
    first, second = tl.split(halves)
    angle = tl.arange(0, WIDTH // 2)
    inside = valid[:, None] & (angle < HEAD // 2)[None, :]
    angle_offset = position[:, None] * (HEAD // 2) + angle[None, :]
    cos = tl.load(cosine + angle_offset, mask=inside, other=0.0).to(tl.float32)
    sin = tl.load(sine + angle_offset, mask=inside, other=0.0).to(tl.float32)
    pointers = start + row[:, None] * stride + angle[None, :]
    dtype = start.dtype.element_ty
    tl.store(pointers, (first * cos + second * sin).to(dtype), mask=inside)
    tl.store(pointers + HEAD // 2, (second * cos - first * sin).to(dtype), mask=inside)
