"""How row-wise kernels index tensors, contiguous or not, and split a row into tiles."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.compile_check import CompileCase

# bytes of a multiprocessor's shared memory that a program fills with prefetched rows
SHARED_MEMORY = 190 << 10
# how shares are summed
_SUMS: dict[str, Any] = dict(ROWS=64, COLUMNS=32, num_warps=8)


def as_rows(x: Tensor) -> Tensor:
    """View x, (..., D), with one to three axes before a last one of stride 1; copy if necessary."""
    if x.dim() == 1:
        x = x[None]
    if x.dim() > 4:
        x = x.reshape(-1, *x.shape[-3:])
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def memory_order(x: Tensor) -> list[int]:
    """Return the axes of x before the last in memory order, the longest stride first."""
    return sorted(range(x.dim() - 1), key=lambda axis: -x.stride(axis))


def empty_in_order(x: Tensor, axes: list[int], dtype: torch.dtype | None = None) -> Tensor:
    """Allocate a tensor of x's shape that is dense in memory in the order of `axes`."""
    axes = [*axes, x.dim() - 1]
    dense = x.new_empty([x.shape[axis] for axis in axes], dtype=dtype)
    return dense.permute([axes.index(axis) for axis in range(x.dim())])


def inner_sizes(x: Tensor, axes: list[int]) -> tuple[int, int]:
    """Return the sizes of the last two of `axes`, by which `row_offsets` unravels row numbers."""
    sizes = [1, 1] + [x.shape[axis] for axis in axes]
    return sizes[-2], sizes[-1]


def strides(x: Tensor, axes: list[int]) -> tuple[int, int, int]:
    """Return the strides of three axes, the slowest first."""
    steps = [0, 0] + [x.stride(axis) for axis in axes]
    return steps[-3], steps[-2], steps[-1]


@triton.jit
def row_offsets(row, middle, last, outer_stride, middle_stride, last_stride):
    """Compute offsets of rows by number, in int64: rows * width can pass 2**31."""
    line = row // last
    outer, second, third = line // middle, line % middle, row % last
    return (
        outer.to(tl.int64) * outer_stride
        + second.to(tl.int64) * middle_stride
        + third.to(tl.int64) * last_stride
    )


def next_power_of_2(width: int) -> int:
    """Return the least power of two that is no less than `width`."""
    return 1 << (width - 1).bit_length()


def cdiv(count: int, size: int) -> int:
    """Return count / size, rounded up."""
    return -(-count // size)


def split_row(width: int) -> tuple[int, int]:
    """Split a row into a tile of the largest power of two and one of the rest, or 0.

    576 is 512 and 64: in one tile of 1,024, every other lane would be idle.
    """
    whole = next_power_of_2(width)
    first = whole if whole == width else whole // 2
    rest = next_power_of_2(width - first) if width > first else 0
    return (whole, 0) if first + rest >= whole else (first, rest)


def num_multiprocessors(x: Tensor) -> int:
    """Count the multiprocessors of x's GPU; 2 where the interpreter stands in for one."""
    if not x.is_cuda:
        return 2
    return torch.cuda.get_device_properties(x.device).multi_processor_count


@triton.jit
def _add_up(shares, total, count, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    column = (tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS))[None]
    sums = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(0, count, ROWS):
        row = first + tl.arange(0, ROWS)[:, None]
        mask = (row < count) & (column < width)
        sums += tl.load(shares + row * width + column, mask=mask, other=0.0)
    whole = tl.sum(sums, axis=0)[None].to(total.dtype.element_ty)
    tl.store(total + column, whole, mask=column < width)


def sum_partials(shares: Tensor, dtype: torch.dtype) -> Tensor:
    """Sum float32 (programs, width) over programs, in the same order every time: (width,)."""
    count, width = shares.shape
    total = shares.new_empty(width, dtype=dtype)
    _add_up[(cdiv(width, _SUMS["COLUMNS"]),)](shares, total, count, width, **_SUMS)
    return total


def max_stages(wanted: int, each: int) -> int:
    """Return how many tiles of `each` bytes are loaded at a time: as many as wanted, or as fit, all
    but one of them in shared memory."""
    return min(wanted, 1 + SHARED_MEMORY // each)


def num_programs(x: Tensor, warps: int, tiles: dict[str, Any], count: int) -> int:
    """Count the programs that share `count` rows, of `warps` warps in all on a multiprocessor: as
    many as run at once, so that no multiprocessor runs a last one alone."""
    programs = num_multiprocessors(x) * max(1, warps // tiles["num_warps"])
    return min(programs, cdiv(count, tiles["ROWS"]))


def argument_types(kernel: Any, values: dict[str, Any], **known: str) -> dict[str, str]:
    """Return the types of a kernel's arguments for a `CompileCase`: the known ones, and i32 for
    sizes and strides."""
    names = [name for name in kernel.arg_names if name not in values]
    return {name: known.get(name, "i32") for name in names}


def packed_strides(kernel: Any, width: int) -> dict[str, int]:
    """Return the strides of contiguous rows, as a launch finds them."""
    ends = {"_outer": 0, "_middle": 0, "_last": width}
    names = [(name, end) for name in kernel.arg_names for end in ends if name.endswith(end)]
    return {name: ends[end] for name, end in names}


def _compile_case() -> CompileCase:
    types = argument_types(_add_up, _SUMS, shares="*fp32", total="*fp32")
    values = {name: n for name, n in _SUMS.items() if name != "num_warps"}
    return CompileCase("add_up", _add_up, types, values, _SUMS["num_warps"], min_programs=8)


COMPILE_CASES = [_compile_case()]
