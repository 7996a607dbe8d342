"""A few queries against a long cache: programs split the rows in bounds, each with a running
softmax of its own, and a second kernel combines them (Dao et al., "Flash-Decoding", 2023).

The number of programs depends on the capacity of the cache alone, never on its contents, so that
one CUDA graph serves every length; each reads the bounds on the GPU and takes its part.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import eager
from kernels.compile_check import CompileCase
from kernels.dispatch import interpreted
from kernels.flash_launch import (
    MAX_HEAD_DIM,
    in_rows,
    log2_scale,
    next_power_of_2,
    padded_head_dim,
    rows_like,
    strides,
)
from kernels.flash_tiles import head_start, load_rows, store_rows

# two for each multiprocessor of an H200
PROGRAMS = 264


@triton.jit
def part_kernel(
    q, keys, values, bounds, out, parts, logs,
    q_batch, q_head, q_row, keys_batch, keys_head, keys_row,
    values_batch, values_head, values_row, out_batch, out_head, out_row,
    heads, sequences, queries, scale,
    HEAD: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    PARTS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Let ROWS queries of a head attend to one part of the rows in bounds.

    parts: (PARTS, B * H, Q, WIDTH) float32, the attention of each part.  logs: (PARTS, B * H, Q),
    log2 of its softmax's sum.  A single part is written to `out` directly.
    """
    sequence, part = tl.program_id(0) // PARTS, tl.program_id(0) % PARTS
    first = tl.program_id(1) * ROWS
    offset = tl.cast(first, tl.int64)
    row = tl.arange(0, ROWS)
    valid = first + row < queries
    q_start = head_start(q, sequence, heads, q_batch, q_head) + offset * q_row
    query = load_rows(q_start, row, valid, q_row, HEAD, WIDTH)
    low, high = tl.load(bounds), tl.load(bounds + 1)
    rows_per_part = tl.cdiv(tl.cdiv(tl.maximum(high - low, 0), COLUMNS), PARTS) * COLUMNS
    start = low + part * rows_per_part
    stop = tl.minimum(start + rows_per_part, high)

    keys_start = head_start(keys, sequence, heads, keys_batch, keys_head)
    values_start = head_start(values, sequence, heads, values_batch, values_head)
    column = tl.arange(0, COLUMNS)
    acc = tl.zeros((ROWS, WIDTH), tl.float32)
    row_sum = tl.zeros((ROWS,), tl.float32)
    row_max = tl.full((ROWS,), float("-inf"), tl.float32)
    for from_key in tl.range(start, stop, COLUMNS):
        here = from_key + column < stop
        k_tile = keys_start + tl.cast(from_key, tl.int64) * keys_row
        key = load_rows(k_tile, column, here, keys_row, HEAD, WIDTH)
        scores = tl.dot(query, tl.trans(key), input_precision=PRECISION) * scale
        scores = tl.where(here[None, :], scores, float("-inf"))
        new_max = tl.maximum(row_max, tl.max(scores, 1))
        probs = tl.exp2(scores - new_max[:, None])
        rescale = tl.exp2(row_max - new_max)
        row_sum = row_sum * rescale + tl.sum(probs, 1)
        v_tile = values_start + tl.cast(from_key, tl.int64) * values_row
        value = load_rows(v_tile, column, here, values_row, HEAD, WIDTH)
        acc = acc * rescale[:, None]
        acc = tl.dot(probs.to(value.dtype), value, acc, input_precision=PRECISION)
        row_max = new_max

    row_sum = tl.where(row_sum == 0.0, 1.0, row_sum)  # an empty part has sum 0 and log -inf
    acc = acc / row_sum[:, None]
    if PARTS == 1:
        to = head_start(out, sequence, heads, out_batch, out_head)
        store_rows(to + tl.cast(first, tl.int64) * out_row, acc, row, valid, out_row, HEAD, WIDTH)
    else:
        at = (part.to(tl.int64) * sequences + sequence) * queries + first
        store_rows(parts + at * WIDTH, acc, row, valid, WIDTH, WIDTH, WIDTH)
        tl.store(logs + at + row, row_max + tl.log2(row_sum), mask=valid)


@triton.jit
def combine_kernel(
    parts, logs, out, out_batch, out_head, out_row, heads, sequences, queries,
    HEAD: tl.constexpr, WIDTH: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Average the parts of one query, weighted by their softmax's sums."""
    sequence, row = tl.program_id(0) // queries, tl.program_id(0) % queries
    part = tl.arange(0, PARTS)
    at = (part.to(tl.int64) * sequences + sequence) * queries + row
    log = tl.load(logs + at)
    max_log = tl.max(log, 0)
    weight = tl.exp2(log - tl.where(max_log == float("-inf"), 0.0, max_log))
    weight_sum = tl.sum(weight, 0)
    column = tl.arange(0, WIDTH)
    values = tl.load(parts + at[:, None] * WIDTH + column[None, :])
    total = tl.sum(values * weight[:, None], 0) / tl.where(weight_sum == 0.0, 1.0, weight_sum)
    to = head_start(out, sequence, heads, out_batch, out_head) + row.to(tl.int64) * out_row
    half = column % (WIDTH // 2)
    offsets = column // (WIDTH // 2) * (HEAD // 2) + half
    tl.store(to + offsets, total.to(out.dtype.element_ty), mask=half < HEAD // 2)


class CacheSplit(NamedTuple):
    """How the kernel splits a cache."""

    rows: int
    columns: int
    parts: int


def split_cache(sequences: int, queries: int, capacity: int, itemsize: int) -> CacheSplit:
    """Choose as many parts as fill the GPU, of two tiles or more each when the cache is full."""
    rows = min(64, max(16, next_power_of_2(queries)))
    columns = 64 if itemsize <= 2 else 32
    wanted_parts = PROGRAMS // max(1, sequences * -(-queries // rows))
    max_parts = min(wanted_parts, capacity // (2 * columns), 64)
    parts = 1 if max_parts < 2 else 1 << (max_parts.bit_length() - 1)
    return CacheSplit(rows, columns, parts)


def decode_attention(q: Tensor, keys: Tensor, values: Tensor, bounds: Tensor) -> Tensor:
    """Compute `kernels.decode_attention`; odd and very wide heads are left to PyTorch."""
    if q.shape[-1] > MAX_HEAD_DIM or q.shape[-1] % 2:
        return eager.decode_attention(q, keys, values, bounds)
    dtype = torch.promote_types(keys.dtype, values.dtype)  # a copy of the cache is expensive
    if interpreted():  # the interpreter is wrong in bfloat16
        dtype = torch.float32
    tensors = [in_rows(x.to(dtype)) for x in (q, keys, values)]
    return decode_attention_operation(*tensors, bounds).to(q.dtype)


@torch.library.custom_op("dreamstage::decode_attention", mutates_args=())
def decode_attention_operation(q: Tensor, keys: Tensor, values: Tensor, bounds: Tensor) -> Tensor:
    out = rows_like(q)
    batch, heads, queries, head = q.shape
    if not q.numel():
        return out
    width = padded_head_dim(q)
    sequences = batch * heads
    rows, columns, parts = split_cache(sequences, queries, keys.shape[2], q.element_size())
    shape = (parts, sequences, queries) if parts > 1 else (0,)
    sums = q.new_empty(*shape, width, dtype=torch.float32)
    logs = q.new_empty(shape, dtype=torch.float32)
    ieee = torch.get_float32_matmul_precision() == "highest"
    first: Any = part_kernel
    first[(sequences * parts, -(-queries // rows))](
        q, keys, values, bounds, out, sums, logs,
        *strides(q, keys, values, out), heads, sequences, queries, log2_scale(q),
        HEAD=head, WIDTH=width, ROWS=rows, COLUMNS=columns, PARTS=parts,
        PRECISION="ieee" if ieee else "tf32", num_warps=4, num_stages=4,
    )  # fmt: skip
    if parts > 1:
        second: Any = combine_kernel
        second[(sequences * queries,)](
            sums, logs, out, *strides(out), heads, sequences, queries,
            HEAD=head, WIDTH=width, PARTS=parts, num_warps=1,
        )  # fmt: skip
    return out


@decode_attention_operation.register_fake
def _(q, keys, values, bounds):
    return rows_like(q)


def _compile_cases(head: int, rows: int, parts: int, dtype: str = "bf16") -> list[CompileCase]:
    """List both kernels on a cache of (B, 9, 1024, E)."""
    cache_strides = {"batch": 9 * 1024 * head, "head": 1024 * head, "row": head}
    query_strides = {"batch": rows * 9 * head, "head": head, "row": 9 * head}
    shape = dict(HEAD=head, WIDTH=next_power_of_2(head), PARTS=parts)
    steps = {f"{x}_{axis}": n for x in ("keys", "values") for axis, n in cache_strides.items()}
    steps |= {f"{x}_{axis}": n for x in ("q", "out") for axis, n in query_strides.items()}
    types = dict.fromkeys(("q", "keys", "values", "out"), f"*{dtype}") | dict(bounds="*i32")
    types |= dict(parts="*fp32", logs="*fp32", heads="i32", sequences="i32", queries="i32")
    columns = split_cache(1, rows, 1024, 2 if dtype == "bf16" else 4).columns
    to_combine = ("parts", "logs", "out", "heads", "sequences", "queries")
    return [
        CompileCase(
            f"decode_attention, {head} wide, {rows} rows, {dtype}", part_kernel,
            types | dict(scale="fp32"),
            shape | steps | dict(ROWS=rows, COLUMNS=columns, PRECISION="tf32"),
            num_stages=4, min_programs=2, wgmma=rows >= 64,  # see PROGRAMS
        ),
        CompileCase(
            f"decode_attention, combine {parts}, {head} wide", combine_kernel,
            {x: types[x] for x in to_combine},
            shape | {f"out_{axis}": n for axis, n in query_strides.items()}, num_warps=1,
            min_programs=32,
        ),
    ]  # fmt: skip


COMPILE_CASES = [
    *_compile_cases(64, 16, 8),
    *_compile_cases(64, 64, 4),
    *_compile_cases(128, 16, 8)[:1],
    *_compile_cases(64, 16, 8, "fp32")[:1],
]
