"""What attention kernels do with a tile: find it, load it, rotate it, find its visible keys.

A row of a head holds HEAD numbers, WIDTH with padding (a power of two).  Each half of a row is
padded on its own, so that the pairs that RoPE rotates always lie WIDTH / 2 apart.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl


@triton.jit
def head_start(x, sequence, heads, stride_batch, stride_head):
    """Return a pointer to the first row of one head of one batch entry."""
    batch, head = (sequence // heads).to(tl.int64), (sequence % heads).to(tl.int64)
    return x + batch * stride_batch + head * stride_head


@triton.jit
def assign_tile(program, tiles, sequences, group_size):
    """Return a program's sequence and the rank of its tile; the heaviest tile has rank 0.

    `group_size` sequences run at a time, so that what their programs read again is still in the L2
    cache.
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
    """Return the first key that a query at `position` sees, and the end of its keys."""
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
    """Return where in a row each padded column lies, and where the angle of its pair lies."""
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
    """Load rows, rotated by the angles of their positions."""
    columns = _columns(HEAD, WIDTH)
    column, angle = columns
    inside = _load_mask(valid, angle, HEAD, WIDTH)
    # the other of a pair is loaded from the cache: cheaper than an exchange between threads
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
    """Store (ROWS, WIDTH) as rows, rotated back by the angles of their positions."""
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
