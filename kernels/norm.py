"""RMSNorm, alone and after the addition of a branch, in one pass over memory each way.

A row stays in registers from its one read to its one write.  Going back, each program walks over
many rows, the next ones on their way to shared memory meanwhile, and adds up its own share of the
weight's gradient; the shares are added afterwards, in the same order every time.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.compile_check import Ahead
from kernels.rows import (
    add_up,
    argument_types,
    cover,
    fresh_like,
    order,
    packed_strides,
    pieces,
    plain,
    resident,
    row_starts,
    stages,
    strides,
    walk,
)

# elements of a tile, and how many of them are a thread's
FORWARD, BACKWARD = (1024, 32), (1024, 16)
# going back: of a multiprocessor, and tiles of rows that are read at a time
WARPS, STAGES = 8, 4


def rms_norm(
    x: Tensor, weight: Tensor, eps: float = 1e-6, kind: torch.dtype | None = None
) -> Tensor:
    """As `kernels.rms_norm`; x may be any view whose last axis has stride 1.

    kind: of the result, if not that of x.
    """
    return _rms_norm(x, weight, eps, kind)


def add_rms_norm(
    x: Tensor, branch: Tensor, weight: Tensor, eps: float = 1e-6, kind: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """As `kernels.add_rms_norm`; kind: of the norm, if not that of the sum."""
    return _add_rms_norm(x, branch, weight, eps, kind)


@triton.jit
def _read(source, start, column, inside, WIDTH: tl.constexpr):
    mask = inside[:, None] & (column < WIDTH)[None]
    return tl.load(source + start[:, None] + column[None], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _write(target, start, column, inside, value, WIDTH: tl.constexpr):
    mask = inside[:, None] & (column < WIDTH)[None]
    tl.store(target + start[:, None] + column[None], value.to(target.dtype.element_ty), mask=mask)


@triton.jit
def _read_sum(x, x_start, branch, branch_start, total, start, column, inside, WIDTH: tl.constexpr):
    """Read a piece of x, add the branch if there is one, and keep the sum as it was rounded."""
    value = _read(x, x_start, column, inside, WIDTH)
    if branch is not None:
        value += _read(branch, branch_start, column, inside, WIDTH)
        value = value.to(total.dtype.element_ty).to(tl.float32)
        _write(total, start, column, inside, value, WIDTH)
    return value


@triton.jit
def _forward(
    x, branch, weight, total, normed, count, middle, last,
    x_outer, x_middle, x_last, branch_outer, branch_middle, branch_last,
    eps, WIDTH: tl.constexpr, FIRST: tl.constexpr, REST: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Norm ROWS rows of x, or of x + branch."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = row < count
    x_start = row_starts(row, middle, last, x_outer, x_middle, x_last)
    branch_start = x_start
    if branch is not None:
        branch_start = row_starts(row, middle, last, branch_outer, branch_middle, branch_last)
    start = row.to(tl.int64) * WIDTH
    column = tl.arange(0, FIRST)
    value = _read_sum(x, x_start, branch, branch_start, total, start, column, inside, WIDTH)
    squares = tl.sum(value * value, axis=1)
    if REST:
        later = FIRST + tl.arange(0, REST)
        end = _read_sum(x, x_start, branch, branch_start, total, start, later, inside, WIDTH)
        squares += tl.sum(end * end, axis=1)
    scale = tl.rsqrt(squares / WIDTH + eps)[:, None]
    by = tl.load(weight + column, mask=column < WIDTH, other=0.0).to(tl.float32)
    _write(normed, start, column, inside, value * scale * by[None], WIDTH)
    if REST:
        by_end = tl.load(weight + later, mask=later < WIDTH, other=0.0).to(tl.float32)
        _write(normed, start, later, inside, end * scale * by_end[None], WIDTH)


@triton.jit
def _pull_back(
    grad_x, grad_branch, grad_sum, start, sum_start, column, inside, value, WIDTH: tl.constexpr
):
    """Write a piece of the gradient, with that of the sum itself added if there is one, and once
    more where the branch has a type of its own."""
    if grad_sum is not None:
        value += _read(grad_sum, sum_start, column, inside, WIDTH)
    _write(grad_x, start, column, inside, value, WIDTH)
    if grad_branch is not None:
        _write(grad_branch, start, column, inside, value, WIDTH)


@triton.jit
def _backward(
    x, grad, grad_sum, weight, grad_x, grad_branch, shares, count, middle, last,
    x_outer, x_middle, x_last, grad_outer, grad_middle, grad_last, sum_outer, sum_middle, sum_last,
    eps, WIDTH: tl.constexpr, FIRST: tl.constexpr, REST: tl.constexpr, ROWS: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """With unit = x scale and along = grad weight: scale (along - unit mean(along unit)).

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
        x_start = row_starts(row, middle, last, x_outer, x_middle, x_last)
        grad_start = row_starts(row, middle, last, grad_outer, grad_middle, grad_last)
        sum_start = x_start
        if grad_sum is not None:
            sum_start = row_starts(row, middle, last, sum_outer, sum_middle, sum_last)
        start = row.to(tl.int64) * WIDTH
        value = _read(x, x_start, column, inside, WIDTH)
        up = _read(grad, grad_start, column, inside, WIDTH)
        squares = tl.sum(value * value, axis=1)
        overlap = tl.sum(value * up * by, axis=1)
        if REST:
            end = _read(x, x_start, later, inside, WIDTH)
            up_end = _read(grad, grad_start, later, inside, WIDTH)
            squares += tl.sum(end * end, axis=1)
            overlap += tl.sum(end * up_end * by_end, axis=1)
        scale = tl.rsqrt(squares / WIDTH + eps)
        part = (overlap * scale * scale / WIDTH)[:, None]
        scale = scale[:, None]
        share += up * value * scale
        value = scale * (up * by - value * part)
        _pull_back(grad_x, grad_branch, grad_sum, start, sum_start, column, inside, value, WIDTH)
        if REST:
            share_end += up_end * end * scale
            end = scale * (up_end * by_end - end * part)
            _pull_back(grad_x, grad_branch, grad_sum, start, sum_start, later, inside, end, WIDTH)
    own = shares + tl.program_id(0).to(tl.int64) * WIDTH
    tl.store(own + column, tl.sum(share, axis=0), mask=column < WIDTH)
    if REST:
        tl.store(own + later, tl.sum(share_end, axis=0), mask=later < WIDTH)


def _tiles(width: int, elements: int, each: int) -> dict[str, Any]:
    """Choose a tile of about so many elements, and warps to give each thread so many of them."""
    first, rest = pieces(width)
    rows = max(1, elements // first)
    warps = max(1, min(16, first * rows // (32 * each)))
    return {"WIDTH": width, "FIRST": first, "REST": rest, "ROWS": rows, "num_warps": warps}


def _back(width: int, itemsize: int) -> dict[str, Any]:
    tiles = _tiles(width, *BACKWARD)
    each = 3 * tiles["ROWS"] * (tiles["FIRST"] + tiles["REST"]) * itemsize
    return tiles | {"STAGES": stages(STAGES, each)}


def _launch_forward(
    x: Tensor, branch: Tensor | None, weight: Tensor, eps: float, kind: torch.dtype | None
) -> tuple[Tensor | None, Tensor]:
    """Give the sum, if there is a branch, and the norm."""
    shape, x = x.shape, plain(x)
    axes = order(x)
    if branch is None:
        total, steps, normed = None, (0, 0, 0), fresh_like(x, axes, kind)
    else:
        branch = plain(branch)
        total = fresh_like(x, axes, torch.promote_types(x.dtype, branch.dtype))
        steps, normed = strides(branch, axes), fresh_like(x, axes, kind or total.dtype)
    if x.numel():
        width = x.shape[-1]
        count, tiles = x.numel() // width, _tiles(width, *FORWARD)
        _forward[(cover(count, tiles["ROWS"]),)](
            x, branch, weight.contiguous(), total, normed, count, *walk(x, axes),
            *strides(x, axes), *steps, eps, **tiles,
        )  # fmt: skip
    return None if total is None else total.view(shape), normed.view(shape)


def _launch_backward(
    x: Tensor, grad: Tensor, grad_sum: Tensor | None, weight: Tensor, eps: float,
    kind: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Give the gradients of what was normed, the one that came to itself included, the same in
    `kind` if it is asked for, else nothing, and of weight."""
    shape, x, grad = x.shape, plain(x), plain(grad)
    axes = order(x)
    grad_x = fresh_like(x, axes)
    grad_branch = None if kind is None else fresh_like(x, axes, kind)
    if not x.numel():
        grad_weight = torch.zeros_like(weight)
    else:
        steps = (0, 0, 0)
        if grad_sum is not None:
            grad_sum = plain(grad_sum)
            steps = strides(grad_sum, axes)
        width = x.shape[-1]
        count, tiles = x.numel() // width, _back(width, x.element_size())
        programs = resident(x, WARPS, tiles, count)
        shares = x.new_empty((programs, width), dtype=torch.float32)
        _backward[(programs,)](
            x, grad, grad_sum, weight.contiguous(), grad_x, grad_branch, shares, count,
            *walk(x, axes), *strides(x, axes), *strides(grad, axes), *steps, eps, **tiles,
        )  # fmt: skip
        grad_weight = add_up(shares, weight.dtype)
    own = x.new_empty(0) if grad_branch is None else grad_branch.view(shape)
    return grad_x.view(shape), own, grad_weight


@torch.library.custom_op("dreamstage::rms_norm", mutates_args=())
def _rms_norm(x: Tensor, weight: Tensor, eps: float, kind: torch.dtype | None) -> Tensor:
    return _launch_forward(x, None, weight, eps, kind)[1]


@torch.library.custom_op("dreamstage::rms_norm_backward", mutates_args=())
def _rms_norm_backward(
    x: Tensor, grad: Tensor, grad_sum: Tensor | None, weight: Tensor, eps: float,
    kind: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return _launch_backward(x, grad, grad_sum, weight, eps, kind)


@torch.library.custom_op("dreamstage::add_rms_norm", mutates_args=())
def _add_rms_norm(
    x: Tensor, branch: Tensor, weight: Tensor, eps: float, kind: torch.dtype | None
) -> tuple[Tensor, Tensor]:
    total, normed = _launch_forward(x, branch, weight, eps, kind)
    assert total is not None
    return total, normed


def _like(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Give an empty tensor laid out as the kernels lay out what belongs to x."""
    rows = plain(x)
    return fresh_like(rows, order(rows), dtype).view(x.shape)


@_rms_norm.register_fake
def _(x: Tensor, weight: Tensor, eps: float, kind: torch.dtype | None) -> Tensor:
    return _like(x, kind)


@_rms_norm_backward.register_fake
def _(
    x: Tensor, grad: Tensor, grad_sum: Tensor | None, weight: Tensor, eps: float,
    kind: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return _like(x), x.new_empty(0) if kind is None else _like(x, kind), torch.empty_like(weight)


@_add_rms_norm.register_fake
def _(
    x: Tensor, branch: Tensor, weight: Tensor, eps: float, kind: torch.dtype | None
) -> tuple[Tensor, Tensor]:
    usual = torch.promote_types(x.dtype, branch.dtype)
    return _like(x, usual), _like(x, kind or usual)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, ctx.eps, _ = inputs
    ctx.save_for_backward(x, weight)


def _from_norm(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
    x, weight = ctx.saved_tensors
    grad_x, _, grad_weight = _rms_norm_backward(x, grad, None, weight, ctx.eps, None)
    return grad_x, grad_weight, None, None


def _keep_sum(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, branch, weight, ctx.eps, _ = inputs
    ctx.kinds = x.dtype, branch.dtype
    ctx.save_for_backward(output[0], weight)


def _from_sum(ctx: Any, grad_sum: Tensor, grad: Tensor) -> tuple[Tensor | None, ...]:
    total, weight = ctx.saved_tensors
    for_x, for_branch = ctx.kinds
    own = for_branch if for_branch != total.dtype else None
    found = _rms_norm_backward(total, grad, grad_sum, weight, ctx.eps, own)
    grad_x, grad_branch, grad_weight = found
    return grad_x.to(for_x), grad_x if own is None else grad_branch, grad_weight, None, None


_rms_norm.register_autograd(_from_norm, setup_context=_keep)
_add_rms_norm.register_autograd(_from_sum, setup_context=_keep_sum)


def _case(
    name: str, kernel: Any, tiles: dict[str, Any], programs: int, **pointers: str | None
) -> Ahead:
    values = dict(tiles)
    warps = values.pop("num_warps")
    values |= {pointer: None for pointer, kind in pointers.items() if kind is None}
    values |= packed_strides(kernel, tiles["WIDTH"])
    kinds = {pointer: kind for pointer, kind in pointers.items() if kind is not None}
    types = argument_types(kernel, values, weight="*fp32", eps="fp32", **kinds)
    return Ahead(name, kernel, types, values, warps, programs=programs)


def _cases(width: int, forth: int, forth_wide: int) -> list[Ahead]:
    """Both ways, with so many programs at once forward; back, with as many as `resident` counts."""
    tiles, back, back_wide = _tiles(width, *FORWARD), _back(width, 2), _back(width, 4)
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


AHEAD = _cases(64, 32, 28) + _cases(576, 28, 16) + _cases(768, 28, 20)
