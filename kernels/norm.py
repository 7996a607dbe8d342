"""RMSNorm, alone and after the addition of a branch, in one pass over memory each way.

A row stays in registers from its one read to its one write.  Backward, each program iterates over
many rows, the next ones being loaded to shared memory meanwhile, and sums its own share of the
weight's gradient; the shares are summed afterwards, always in the same order.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.compile_check import CompileCase
from kernels.rows import (
    argument_types,
    as_rows,
    cdiv,
    empty_in_order,
    inner_sizes,
    max_stages,
    memory_order,
    num_programs,
    packed_strides,
    row_offsets,
    split_row,
    strides,
    sum_partials,
)

# elements of a tile, and of a thread
FORWARD, BACKWARD = (1024, 32), (1024, 16)
# backward: warps of a multiprocessor, and tiles of rows that are loaded at a time
WARPS, STAGES = 8, 4


def rms_norm(
    x: Tensor, weight: Tensor, eps: float = 1e-6, dtype: torch.dtype | None = None
) -> Tensor:
    """Compute `kernels.rms_norm`; x may be any view whose last axis has stride 1.

    dtype: of the result, if not that of x.
    """
    return _rms_norm(x, weight, eps, dtype)


def add_rms_norm(
    x: Tensor, branch: Tensor, weight: Tensor, eps: float = 1e-6, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """Compute `kernels.add_rms_norm`; dtype: of the norm, if not that of the sum."""
    return _add_rms_norm(x, branch, weight, eps, dtype)


@triton.jit
def _load(source, start, column, inside, WIDTH: tl.constexpr):
    mask = inside[:, None] & (column < WIDTH)[None]
    return tl.load(source + start[:, None] + column[None], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _store(target, start, column, inside, value, WIDTH: tl.constexpr):
    mask = inside[:, None] & (column < WIDTH)[None]
    tl.store(target + start[:, None] + column[None], value.to(target.dtype.element_ty), mask=mask)


@triton.jit
def _load_sum(x, x_start, branch, branch_start, total, start, column, inside, WIDTH: tl.constexpr):
    """Load a piece of x, add the branch if there is one, and store the sum as it is rounded."""
    value = _load(x, x_start, column, inside, WIDTH)
    if branch is not None:
        value += _load(branch, branch_start, column, inside, WIDTH)
        value = value.to(total.dtype.element_ty).to(tl.float32)
        _store(total, start, column, inside, value, WIDTH)
    return value


@triton.jit
def _forward(
    x, branch, weight, total, normed, count, middle, last,
    x_outer, x_middle, x_last, branch_outer, branch_middle, branch_last,
    eps, WIDTH: tl.constexpr, FIRST: tl.constexpr, REST: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Normalize ROWS rows of x, or of x + branch."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = row < count
    x_start = row_offsets(row, middle, last, x_outer, x_middle, x_last)
    branch_start = x_start
    if branch is not None:
        branch_start = row_offsets(row, middle, last, branch_outer, branch_middle, branch_last)
    start = row.to(tl.int64) * WIDTH
    column = tl.arange(0, FIRST)
    value = _load_sum(x, x_start, branch, branch_start, total, start, column, inside, WIDTH)
    squares = tl.sum(value * value, axis=1)
    if REST:
        later = FIRST + tl.arange(0, REST)
        end = _load_sum(x, x_start, branch, branch_start, total, start, later, inside, WIDTH)
        squares += tl.sum(end * end, axis=1)
    scale = tl.rsqrt(squares / WIDTH + eps)[:, None]
    by = tl.load(weight + column, mask=column < WIDTH, other=0.0).to(tl.float32)
    _store(normed, start, column, inside, value * scale * by[None], WIDTH)
    if REST:
        by_end = tl.load(weight + later, mask=later < WIDTH, other=0.0).to(tl.float32)
        _store(normed, start, later, inside, end * scale * by_end[None], WIDTH)


@triton.jit
def _store_grad(
    grad_x, grad_branch, grad_sum, start, sum_start, column, inside, value, WIDTH: tl.constexpr
):
    """Store a piece of the gradient, with that of the sum itself added if there is one, and again
    where the branch has a dtype of its own."""
    if grad_sum is not None:
        value += _load(grad_sum, sum_start, column, inside, WIDTH)
    _store(grad_x, start, column, inside, value, WIDTH)
    if grad_branch is not None:
        _store(grad_branch, start, column, inside, value, WIDTH)


@triton.jit
def _backward(
    x, grad, grad_sum, weight, grad_x, grad_branch, shares, count, middle, last,
    x_outer, x_middle, x_last, grad_outer, grad_middle, grad_last, sum_outer, sum_middle, sum_last,
    eps, WIDTH: tl.constexpr, FIRST: tl.constexpr, REST: tl.constexpr, ROWS: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """Compute scale (along - unit mean(along unit)), with unit = x scale and along = grad weight.

    shares: (programs, WIDTH) float32, sums of grad unit over a program's rows.
    """
    column = tl.arange(0, FIRST)
    by = tl.load(weight + column, mask=column < WIDTH, other=0.0).to(tl.float32)[None]
    share = tl.zeros((ROWS, FIRST), tl.float32)
    if REST:
        later = FIRST + tl.arange(0, REST)
        by_end = tl.load(weight + later, mask=later < WIDTH, other=0.0).to(tl.float32)[None]
        share_end = tl.zeros((ROWS, REST), tl.float32)
    tiles = tl.cdiv(count, ROWS)
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), num_stages=STAGES):
        row = tile * ROWS + tl.arange(0, ROWS)
        inside = row < count
        x_start = row_offsets(row, middle, last, x_outer, x_middle, x_last)
        grad_start = row_offsets(row, middle, last, grad_outer, grad_middle, grad_last)
        sum_start = x_start
        if grad_sum is not None:
            sum_start = row_offsets(row, middle, last, sum_outer, sum_middle, sum_last)
        start = row.to(tl.int64) * WIDTH
        value = _load(x, x_start, column, inside, WIDTH)
        up = _load(grad, grad_start, column, inside, WIDTH)
        squares = tl.sum(value * value, axis=1)
        overlap = tl.sum(value * up * by, axis=1)
        if REST:
            end = _load(x, x_start, later, inside, WIDTH)
            up_end = _load(grad, grad_start, later, inside, WIDTH)
            squares += tl.sum(end * end, axis=1)
            overlap += tl.sum(end * up_end * by_end, axis=1)
        scale = tl.rsqrt(squares / WIDTH + eps)
        part = (overlap * scale * scale / WIDTH)[:, None]
        scale = scale[:, None]
        share += up * value * scale
        value = scale * (up * by - value * part)
        _store_grad(grad_x, grad_branch, grad_sum, start, sum_start, column, inside, value, WIDTH)
        if REST:
            share_end += up_end * end * scale
            end = scale * (up_end * by_end - end * part)
            _store_grad(grad_x, grad_branch, grad_sum, start, sum_start, later, inside, end, WIDTH)
    own = shares + tl.program_id(0).to(tl.int64) * WIDTH
    tl.store(own + column, tl.sum(share, axis=0), mask=column < WIDTH)
    if REST:
        tl.store(own + later, tl.sum(share_end, axis=0), mask=later < WIDTH)


def _tiles(width: int, elements: int, each: int) -> dict[str, Any]:
    """Choose a tile of about `elements`, and warps so that each thread has `each` of them."""
    first, rest = split_row(width)
    rows = max(1, elements // first)
    warps = max(1, min(16, first * rows // (32 * each)))
    return {"WIDTH": width, "FIRST": first, "REST": rest, "ROWS": rows, "num_warps": warps}


def _backward_tiles(width: int, itemsize: int) -> dict[str, Any]:
    tiles = _tiles(width, *BACKWARD)
    each = 3 * tiles["ROWS"] * (tiles["FIRST"] + tiles["REST"]) * itemsize
    return tiles | {"STAGES": max_stages(STAGES, each)}


def _launch_forward(
    x: Tensor, branch: Tensor | None, weight: Tensor, eps: float, dtype: torch.dtype | None
) -> tuple[Tensor | None, Tensor]:
    """Return the sum, if there is a branch, and the norm."""
    shape, x = x.shape, as_rows(x)
    axes = memory_order(x)
    if branch is None:
        total, steps, normed = None, (0, 0, 0), empty_in_order(x, axes, dtype)
    else:
        branch = as_rows(branch)
        total = empty_in_order(x, axes, torch.promote_types(x.dtype, branch.dtype))
        steps, normed = strides(branch, axes), empty_in_order(x, axes, dtype or total.dtype)
    if x.numel():
        width = x.shape[-1]
        count, tiles = x.numel() // width, _tiles(width, *FORWARD)
        _forward[(cdiv(count, tiles["ROWS"]),)](
            x, branch, weight.contiguous(), total, normed, count, *inner_sizes(x, axes),
            *strides(x, axes), *steps, eps, **tiles,
        )  # fmt: skip
    return None if total is None else total.view(shape), normed.view(shape)


def _launch_backward(
    x: Tensor, grad: Tensor, grad_sum: Tensor | None, weight: Tensor, eps: float,
    dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of what was normed, `grad_sum` included, the same in `dtype`, empty if
    it is None, and of weight."""
    shape, x, grad = x.shape, as_rows(x), as_rows(grad)
    axes = memory_order(x)
    grad_x = empty_in_order(x, axes)
    grad_branch = None if dtype is None else empty_in_order(x, axes, dtype)
    if not x.numel():
        grad_weight = torch.zeros_like(weight)
    else:
        steps = (0, 0, 0)
        if grad_sum is not None:
            grad_sum = as_rows(grad_sum)
            steps = strides(grad_sum, axes)
        width = x.shape[-1]
        count, tiles = x.numel() // width, _backward_tiles(width, x.element_size())
        programs = num_programs(x, WARPS, tiles, count)
        shares = x.new_empty((programs, width), dtype=torch.float32)
        _backward[(programs,)](
            x, grad, grad_sum, weight.contiguous(), grad_x, grad_branch, shares, count,
            *inner_sizes(x, axes), *strides(x, axes), *strides(grad, axes), *steps, eps, **tiles,
        )  # fmt: skip
        grad_weight = sum_partials(shares, weight.dtype)
    own = x.new_empty(0) if grad_branch is None else grad_branch.view(shape)
    return grad_x.view(shape), own, grad_weight


@torch.library.custom_op("dreamstage::rms_norm", mutates_args=())
def _rms_norm(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype | None) -> Tensor:
    return _launch_forward(x, None, weight, eps, dtype)[1]


@torch.library.custom_op("dreamstage::rms_norm_backward", mutates_args=())
def _rms_norm_backward(
    x: Tensor, grad: Tensor, grad_sum: Tensor | None, weight: Tensor, eps: float,
    dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return _launch_backward(x, grad, grad_sum, weight, eps, dtype)


@torch.library.custom_op("dreamstage::add_rms_norm", mutates_args=())
def _add_rms_norm(
    x: Tensor, branch: Tensor, weight: Tensor, eps: float, dtype: torch.dtype | None
) -> tuple[Tensor, Tensor]:
    total, normed = _launch_forward(x, branch, weight, eps, dtype)
    assert total is not None
    return total, normed


def _like(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Allocate a tensor laid out as the kernels lay out results of x."""
    rows = as_rows(x)
    return empty_in_order(rows, memory_order(rows), dtype).view(x.shape)


@_rms_norm.register_fake
def _(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype | None) -> Tensor:
    return _like(x, dtype)


@_rms_norm_backward.register_fake
def _(
    x: Tensor, grad: Tensor, grad_sum: Tensor | None, weight: Tensor, eps: float,
    dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return _like(x), x.new_empty(0) if dtype is None else _like(x, dtype), torch.empty_like(weight)


@_add_rms_norm.register_fake
def _(
    x: Tensor, branch: Tensor, weight: Tensor, eps: float, dtype: torch.dtype | None
) -> tuple[Tensor, Tensor]:
    usual = torch.promote_types(x.dtype, branch.dtype)
    return _like(x, usual), _like(x, dtype or usual)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, ctx.eps, _ = inputs
    ctx.save_for_backward(x, weight)


def _rms_norm_autograd(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
    x, weight = ctx.saved_tensors
    grad_x, _, grad_weight = _rms_norm_backward(x, grad, None, weight, ctx.eps, None)
    return grad_x, grad_weight, None, None


def _setup_sum_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, branch, weight, ctx.eps, _ = inputs
    ctx.dtypes = x.dtype, branch.dtype
    ctx.save_for_backward(output[0], weight)


def _add_rms_norm_autograd(ctx: Any, grad_sum: Tensor, grad: Tensor) -> tuple[Tensor | None, ...]:
    total, weight = ctx.saved_tensors
    x_dtype, branch_dtype = ctx.dtypes
    grad_branch_dtype = branch_dtype if branch_dtype != total.dtype else None
    found = _rms_norm_backward(total, grad, grad_sum, weight, ctx.eps, grad_branch_dtype)
    grad_x, grad_branch, grad_weight = found
    return (
        grad_x.to(x_dtype),
        grad_x if grad_branch_dtype is None else grad_branch,
        grad_weight,
        None,
        None,
    )


_rms_norm.register_autograd(_rms_norm_autograd, setup_context=_setup_context)
_add_rms_norm.register_autograd(_add_rms_norm_autograd, setup_context=_setup_sum_context)


def _case(
    name: str, kernel: Any, tiles: dict[str, Any], programs: int, **pointers: str | None
) -> CompileCase:
    values = dict(tiles)
    warps = values.pop("num_warps")
    values |= {pointer: None for pointer, dtype in pointers.items() if dtype is None}
    values |= packed_strides(kernel, tiles["WIDTH"])
    dtypes = {pointer: dtype for pointer, dtype in pointers.items() if dtype is not None}
    types = argument_types(kernel, values, weight="*fp32", eps="fp32", **dtypes)
    return CompileCase(name, kernel, types, values, warps, min_programs=programs)


def _cases(width: int, forth: int, forth_wide: int) -> list[CompileCase]:
    """List both passes, with so many programs at once forward; backward, as `num_programs` counts
    them."""
    tiles, back, back_wide = (
        _tiles(width, *FORWARD),
        _backward_tiles(width, 2),
        _backward_tiles(width, 4),
    )
    return [
        _case(
            f"rms_norm {width}", _forward, tiles, forth,
            x="*bf16", normed="*bf16", branch=None, total=None,
        ),
        _case(
            f"add_rms_norm {width}", _forward, tiles, forth,
            x="*bf16", normed="*bf16", branch="*bf16", total="*bf16",
        ),
        _case(
            f"rms_norm backward {width}", _backward, back, WARPS // back["num_warps"],
            x="*bf16", grad="*bf16", grad_sum=None, grad_x="*bf16", grad_branch=None,
            shares="*fp32",
        ),
        _case(
            f"add_rms_norm backward {width}", _backward, back, WARPS // back["num_warps"],
            x="*bf16", grad="*bf16", grad_sum="*bf16", grad_x="*bf16", grad_branch=None,
            shares="*fp32",
        ),
        _case(
            f"add_rms_norm of bf16 to float32 {width}", _forward, tiles, forth_wide,
            x="*fp32", normed="*bf16", branch="*bf16", total="*fp32",
        ),
        _case(
            f"add_rms_norm of bf16 to float32 backward {width}", _backward, back_wide,
            WARPS // back_wide["num_warps"],
            x="*fp32", grad="*bf16", grad_sum="*fp32", grad_x="*fp32", grad_branch="*bf16",
            shares="*fp32",
        ),
    ]  # fmt: skip


COMPILE_CASES = _cases(64, 32, 28) + _cases(576, 28, 16) + _cases(768, 28, 20)
