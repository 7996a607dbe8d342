"""A few rows through the norm before a product, the product, and the gate behind it, in one kernel.

What is multiplied is not normed yet: a row's scale can wait until all of the row has been seen,
which is when its product is done.  For imagination, where a step of a small model is launches more
than arithmetic; there are no gradients.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.ahead import Ahead
from kernels.choice import interpreted
from kernels.rows import argument_types, cover, tile

# rows that a library's product, which multiplies in larger tiles, does not do better
FEW = 1024


@triton.jit
def _multiplied(unit, matrix, out, known, column, within, product, WIDTH: tl.constexpr):
    """Add a chunk of unit matrix^T to the product; `out`: rows of the matrix."""
    place = matrix + out[:, None].to(tl.int64) * WIDTH + column[None]
    by = tl.load(place, mask=known[:, None] & within[None], other=0.0)
    return tl.dot(unit, by.trans(), product, input_precision="ieee")


@triton.jit
def _norm_linear(
    x, branch, weight, matrix, total, result, count, outputs, eps,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHUNK: tl.constexpr,
    GATED: tl.constexpr,
):  # fmt: skip
    """ROWS rows of x, or of x + branch, through the norm to COLUMNS numbers each.

    GATED: the matrix has as many rows again behind the first `outputs`, and those gate these.
    """
    across = tl.cdiv(outputs, COLUMNS)
    row = tl.program_id(0) // across * ROWS + tl.arange(0, ROWS)
    here = tl.program_id(0) % across
    out = here * COLUMNS + tl.arange(0, COLUMNS)
    inside, known = row < count, out < outputs
    start = row[:, None].to(tl.int64) * WIDTH
    squares = tl.zeros([ROWS], tl.float32)
    product = tl.zeros([ROWS, COLUMNS], tl.float32)
    other = tl.zeros([ROWS, COLUMNS], tl.float32)
    for first in range(0, WIDTH, CHUNK):
        column = first + tl.arange(0, CHUNK)
        within = column < WIDTH
        mask = inside[:, None] & within[None]
        value = tl.load(x + start + column[None], mask=mask, other=0.0).to(tl.float32)
        if branch is not None:
            value += tl.load(branch + start + column[None], mask=mask, other=0.0).to(tl.float32)
            kept = value.to(total.dtype.element_ty)
            tl.store(total + start + column[None], kept, mask=mask & (here == 0))
            value = kept.to(tl.float32)
        squares += tl.sum(value * value, axis=1)
        by = tl.load(weight + column, mask=within, other=0.0).to(tl.float32)
        unit = (value * by[None]).to(matrix.dtype.element_ty)
        product = _multiplied(unit, matrix, out, known, column, within, product, WIDTH)
        if GATED:
            later = out + outputs
            other = _multiplied(unit, matrix, later, known, column, within, other, WIDTH)
    scale = tl.rsqrt(squares / WIDTH + eps)[:, None]
    product *= scale
    if GATED:
        product = product * tl.sigmoid(product) * (other * scale)
    place = row[:, None].to(tl.int64) * outputs + out[None]
    kind = result.dtype.element_ty
    tl.store(result + place, product.to(kind), mask=inside[:, None] & known[None])


def fits(x: Tensor, matrix: Tensor) -> bool:
    """Whether this is for rows x, (..., D), of which no gradients are asked, and a weight that is
    held in bfloat16."""
    narrow = matrix.dtype == torch.bfloat16 or interpreted()
    return narrow and not torch.is_grad_enabled() and x.numel() // x.shape[-1] <= FEW


def norm_linear(
    x: Tensor, branch: Tensor | None, weight: Tensor, matrix: Tensor, gated: bool, eps: float
) -> tuple[Tensor, Tensor]:
    """As `kernels.norm_linear`."""
    total, product = _norm_product(x, branch, weight, matrix, gated, eps)
    return x if branch is None else total, product


class Tile(NamedTuple):
    """How much a program does, and with what."""

    rows: int
    columns: int
    chunk: int
    """Of a row, at a time."""
    warps: int
    stages: int


ONE, MANY = Tile(16, 64, 64, 4, 3), Tile(64, 64, 64, 4, 3)


def _tiles(count: int, width: int, gated: bool) -> dict[str, Any]:
    size = ONE if count <= ONE.rows else MANY
    return dict(
        WIDTH=width, ROWS=size.rows, COLUMNS=size.columns, GATED=gated,
        CHUNK=max(16, min(size.chunk, tile(width))), num_warps=size.warps, num_stages=size.stages,
    )  # fmt: skip


@torch.library.custom_op("dreamstage::norm_linear", mutates_args=())
def _norm_product(
    x: Tensor, branch: Tensor | None, weight: Tensor, matrix: Tensor, gated: bool, eps: float
) -> tuple[Tensor, Tensor]:
    """The sum, empty without a branch, and the product."""
    x, branch = x.contiguous(), None if branch is None else branch.contiguous()
    total, product = _results(x, branch, matrix, gated)
    if x.numel():
        width, outputs = x.shape[-1], product.shape[-1]
        count = x.numel() // width
        tiles = _tiles(count, width, gated)
        programs = cover(count, tiles["ROWS"]) * cover(outputs, tiles["COLUMNS"])
        _norm_linear[(programs,)](
            x, branch, weight.contiguous(), matrix.contiguous(), total, product, count, outputs,
            eps, **tiles,
        )  # fmt: skip
    return total, product


def _results(
    x: Tensor, branch: Tensor | None, matrix: Tensor, gated: bool
) -> tuple[Tensor, Tensor]:
    outputs = len(matrix) // 2 if gated else len(matrix)
    product = x.new_empty((*x.shape[:-1], outputs), dtype=matrix.dtype)
    if branch is None:
        return x.new_empty(0), product
    return x.new_empty(x.shape, dtype=torch.promote_types(x.dtype, branch.dtype)), product


@_norm_product.register_fake
def _(
    x: Tensor, branch: Tensor | None, weight: Tensor, matrix: Tensor, gated: bool, eps: float
) -> tuple[Tensor, Tensor]:
    return _results(x, branch, matrix, gated)


def _case(name: str, count: int, width: int, gated: bool) -> Ahead:
    constants = _tiles(count, width, gated)
    warps, stages = constants.pop("num_warps"), constants.pop("num_stages")
    known = {"weight": "*fp32", "x": "*fp32", "total": "*fp32", "eps": "fp32"}
    known |= dict.fromkeys(("branch", "matrix", "result"), "*bf16")
    types = argument_types(_norm_linear, constants, **known)
    return Ahead(
        name, _norm_linear, types, constants, warps, stages, registers=255, shared=100 << 10,
        wgmma=count > 16,
    )  # fmt: skip


AHEAD: list[Ahead] = [
    _case(f"norm_linear {rows} x {width}" + ", gated" * gated, rows, width, gated)
    for rows in (1, 300)
    for width in (192, 576)
    for gated in (False, True)
]
