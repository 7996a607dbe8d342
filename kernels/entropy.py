"""Cross-entropy of a linear layer without its (R, V) logits in memory.

Forward, a program iterates over tiles of classes: the product, an online log-sum-exp and the
argmax, so that one number a row is kept.  Backward, in chunks of rows (Hsu et al.,
arXiv:2410.10989): a kernel recomputes the tiles of logits, turns them into gradients in place, and
writes those once, in x's dtype; cuBLAS computes the two large products with them.  That is one
product more than with kept logits, which in bfloat16 would no longer match the log-sum-exp, and in
float32 would take longer to move than to recompute.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.compile_check import CompileCase
from kernels.rows import argument_types, cdiv, num_multiprocessors


def linear_cross_entropy(
    x: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None = None,
    before: Tensor | None = None,
    bonus: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute `kernels.linear_cross_entropy`; under autocast the product is in its dtype."""
    if before is None or bonus is None:
        before = bonus = None
    dtype = torch.promote_types(x.dtype, weight.dtype)
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
    x, weight = x.to(dtype), weight.to(dtype)
    losses, classes, _ = _linear_cross_entropy(x, weight, target, bias, before, bonus)
    return losses, classes


LOG2_E = tl.constexpr(1 / math.log(2))  # GPUs raise 2 to a power, not e


@triton.jit
def _logits(
    x, weight, bias, before, bonus, row, column, count, classes,
    WIDTH: tl.constexpr, DEPTH: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Return a tile of logits in float32; -inf for classes that do not exist.

    Bias and bonus initialize the sums of the product: that takes no registers afterwards.
    """
    depth = tl.arange(0, DEPTH)
    rows = x + row[:, None].to(tl.int64) * WIDTH + depth[None]
    columns = weight + column[None].to(tl.int64) * WIDTH + depth[:, None]
    inside, exists = (row < count)[:, None], (column < classes)[None]
    if bias is None:
        level = tl.where(exists, 0.0, float("-inf"))
    else:
        level = tl.load(bias + column[None], mask=exists, other=float("-inf")).to(tl.float32)
    if bonus is None:
        logits = tl.broadcast_to(level, (row.shape[0], column.shape[0]))
    else:
        which = tl.load(before + row, mask=row < count, other=-1)[:, None].to(tl.int32)
        more = tl.load(bonus + row, mask=row < count, other=0.0)[:, None].to(tl.float32)
        logits = level + tl.where(column[None] == which, more, 0.0)
    for start in range(0, WIDTH, DEPTH):
        within = depth < WIDTH - start
        left = tl.load(rows + start, mask=inside & within[None], other=0.0)
        right = tl.load(columns + start, mask=exists & within[:, None], other=0.0)
        logits = tl.dot(left.to(DOT), right.to(DOT), logits, input_precision=PRECISION)
    return logits


@triton.jit
def _forward(
    x, weight, bias, before, bonus, target, tops, logsums, bests, hits, count, classes,
    SHARE: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr,
    DEPTH: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Iterate over a share of the classes for ROWS rows.

    tops, logsums, bests, hits: (shares, R), the largest logit, the log-sum-exp, the likeliest
    class, and the target's logit, 0 where the target is in another share.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    target_class = tl.load(target + row, mask=row < count, other=-1)[:, None].to(tl.int32)
    top = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    hit = tl.zeros((ROWS,), tl.float32)
    best = tl.zeros((ROWS,), tl.int32)
    first = tl.program_id(1) * SHARE
    for start in range(first, tl.minimum(first + SHARE, classes), TILE):
        column = start + tl.arange(0, TILE)
        logits = _logits(
            x, weight, bias, before, bonus, row, column, count, classes,
            WIDTH, DEPTH, DOT, PRECISION,
        )  # fmt: skip
        hit += tl.sum(tl.where(column[None] == target_class, logits, 0.0), axis=1)
        high = tl.max(logits, axis=1)
        where = tl.min(tl.where(logits == high[:, None], column[None], classes), axis=1)
        best = tl.where(high > top, where, best)
        higher = tl.maximum(top, high)
        fresh = tl.sum(tl.exp2(logits * LOG2_E - (higher * LOG2_E)[:, None]), axis=1)
        total = total * tl.exp2((top - higher) * LOG2_E) + fresh
        top = higher
    inside = row < count
    own = tl.program_id(1).to(tl.int64) * count + row
    tl.store(tops + own, top, mask=inside)
    tl.store(logsums + own, top + tl.log(total), mask=inside)
    tl.store(bests + own, best, mask=inside)
    tl.store(hits + own, hit, mask=inside)


@triton.jit
def _backward(
    x, weight, bias, before, bonus, target, logsums, grad, result, grad_bias, grad_bonus,
    count, classes,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr,
    DEPTH: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write a tile of the logits' gradients: (probability - (class is target)) grad.

    result: (R, V).  grad_bias: (tiles of rows, V) float32.  grad_bonus: (R,) float32, written by
    the tile that holds the row's class `before`.
    """
    across = tl.cdiv(classes, TILE)
    tile = tl.program_id(0) // across
    row = tile * ROWS + tl.arange(0, ROWS)
    first = tl.program_id(0) % across * TILE
    column = first + tl.arange(0, TILE)
    inside, exists = row < count, column < classes
    logits = _logits(
        x, weight, bias, before, bonus, row, column, count, classes, WIDTH, DEPTH, DOT, PRECISION
    )
    logsum = tl.load(logsums + row, mask=inside, other=0.0)[:, None]
    grad_loss = tl.load(grad + row, mask=inside, other=0.0).to(tl.float32)[:, None]
    target_class = tl.load(target + row, mask=inside, other=-1)[:, None].to(tl.int32)
    value = tl.exp2(logits * LOG2_E - logsum * LOG2_E)
    value = tl.where(column[None] == target_class, value - 1, value) * grad_loss
    pointers = result + row[:, None].to(tl.int64) * classes + column[None]
    tl.store(pointers, value.to(result.dtype.element_ty), mask=inside[:, None] & exists[None])
    if bias is not None:
        own = grad_bias + tile.to(tl.int64) * classes + column
        tl.store(own, tl.sum(value, axis=0), mask=exists)
    if bonus is not None:
        which = tl.load(before + row, mask=inside, other=-1).to(tl.int32)
        raised = tl.sum(tl.where(column[None] == which[:, None], value, 0.0), axis=1)
        here = (which >= first) & (which < first + TILE)
        tl.store(grad_bonus + row, raised, mask=inside & here)


_TL_DTYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


def _tiles(dim: int, dtype: torch.dtype, tile_columns: int) -> dict[str, Any]:
    """Choose a tile of 128 rows by `tile_columns` classes; float32 takes twice the memory.

    Forward, 128 x 256 reads less from the L2 cache and fills the registers.  Backward, two tiles of
    128 x 128 share a multiprocessor, one multiplying while the other computes probabilities; with
    bias and bonus, their sums take the registers of the second.
    """
    exact = torch.get_float32_matmul_precision() == "highest"
    tiles = {
        "WIDTH": dim, "ROWS": 128, "TILE": tile_columns, "DEPTH": 64, "DOT": _TL_DTYPES[dtype],
        "PRECISION": "ieee" if dtype == torch.float32 and exact else "tf32",
        "num_warps": 8, "num_stages": 3,
    }  # fmt: skip
    if dtype == torch.float32:
        tiles |= {"ROWS": 64, "TILE": 64, "DEPTH": 32}
    return tiles


def _chunk_rows(classes: int) -> int:
    """Choose how many rows' gradients of logits exist at once: 32 MiB in bfloat16, which an H200's
    L2 cache holds, but enough rows to keep the products large."""
    return max(4096, 2**24 // classes // 128 * 128)


def _tiles_per_program(down: int, across: int, programs: int) -> int:
    """Choose how many tiles of classes a program iterates over, for the shortest total time.

    down: tiles of rows.  across: tiles of classes.  programs: those that run at once.
    """
    shares = [2**n for n in range(across.bit_length())]
    return min(
        (cdiv(across, n) for n in shares),
        key=lambda each: cdiv(down * cdiv(across, each), programs) * each,
    )


@torch.library.custom_op("dreamstage::linear_cross_entropy", mutates_args=())
def _linear_cross_entropy(
    x: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    before: Tensor | None,
    bonus: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return losses, classes and the log-sum-exp of each row."""
    x, weight, target, bias, before, bonus = _contiguous(x, weight, target, bias, before, bonus)
    count, (classes, width) = len(x), weight.shape
    if not count:
        return (
            x.new_empty(0, dtype=torch.float32),
            target.new_empty(0),
            x.new_empty(0, dtype=torch.float32),
        )
    tiles = _tiles(width, x.dtype, 256 if bonus is None else 128)
    down, across = cdiv(count, tiles["ROWS"]), cdiv(classes, tiles["TILE"])
    each = _tiles_per_program(down, across, num_multiprocessors(x)) * tiles["TILE"]
    shares = cdiv(classes, each)
    tops, logsums, hits = (x.new_empty((shares, count), dtype=torch.float32) for _ in range(3))
    bests = target.new_empty((shares, count))
    _forward[(down, shares)](
        x, weight, bias, before, bonus, target, tops, logsums, bests, hits, count, classes, each,
        **tiles,
    )  # fmt: skip
    if shares == 1:
        return logsums[0] - hits[0], bests[0], logsums[0]
    logsums, likeliest = torch.logsumexp(logsums, 0), tops.argmax(0, keepdim=True)
    return logsums - hits.sum(0), bests.gather(0, likeliest)[0], logsums


@torch.library.custom_op("dreamstage::linear_cross_entropy_backward", mutates_args=())
def _linear_cross_entropy_backward(
    x: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    before: Tensor | None,
    bonus: Tensor | None,
    logsums: Tensor,
    grad: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x, weight, bias and bonus; empty ones for those not given."""
    x, weight, target, bias, before, bonus, grad = _contiguous(
        x, weight, target, bias, before, bonus, grad
    )
    count, (classes, width) = len(x), weight.shape
    chunk_rows, tiles = min(count, _chunk_rows(classes)), _tiles(width, x.dtype, 128)
    grad_x, grad_weight = torch.empty_like(x), None
    grad_bias = x.new_zeros(classes if bias is not None else 0, dtype=torch.float32)
    grad_bonus = x.new_empty(count if bonus is not None else 0, dtype=torch.float32)
    buffer = x.new_empty((chunk_rows, classes))
    for start in range(0, count, chunk_rows or 1):
        part = slice(start, start + chunk_rows)
        rows, up = x[part], buffer[: count - start]
        down, across = cdiv(len(rows), tiles["ROWS"]), cdiv(classes, tiles["TILE"])
        shares = x.new_empty((down, grad_bias.numel()), dtype=torch.float32)
        _backward[(down * across,)](
            rows, weight, bias, None if before is None else before[part],
            None if bonus is None else bonus[part], target[part], logsums[part], grad[part],
            up, shares, grad_bonus[part], len(rows), classes, **tiles,
        )  # fmt: skip
        with torch.autocast(x.device.type, enabled=False):
            torch.mm(up, weight, out=grad_x[part])
            weight_part = up.T @ rows
        grad_weight = weight_part if grad_weight is None else grad_weight.float().add_(weight_part)
        grad_bias += shares.sum(0)
    grad_weight = torch.zeros_like(weight) if grad_weight is None else grad_weight.to(weight.dtype)
    return grad_x, grad_weight, grad_bias, grad_bonus


def _contiguous(*given: Tensor | None) -> Any:
    return (None if x is None else x.contiguous() for x in given)


@_linear_cross_entropy.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    before: Tensor | None,
    bonus: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    losses = x.new_empty(x.shape[0], dtype=torch.float32)
    return losses, target.new_empty(x.shape[0]), torch.empty_like(losses)


@_linear_cross_entropy_backward.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    before: Tensor | None,
    bonus: Tensor | None,
    logsums: Tensor,
    grad: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grad_bias = x.new_empty(weight.shape[0] if bias is not None else 0, dtype=torch.float32)
    grad_bonus = x.new_empty(x.shape[0] if bonus is not None else 0, dtype=torch.float32)
    return x.new_empty(x.shape), weight.new_empty(weight.shape), grad_bias, grad_bonus


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs, output[2])
    ctx.mark_non_differentiable(*output[1:])


def _autograd_backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    *inputs, logsums = ctx.saved_tensors
    grad_x, grad_weight, grad_bias, grad_bonus = _linear_cross_entropy_backward(
        *inputs, logsums, grad
    )
    bias, bonus = inputs[3], inputs[5]
    return (
        grad_x,
        grad_weight,
        None,
        None if bias is None else grad_bias.to(bias.dtype),
        None,
        None if bonus is None else grad_bonus.to(bonus.dtype),
    )


_linear_cross_entropy.register_autograd(_autograd_backward, setup_context=_setup_context)


def _case(
    kernel: Any, name: str, width: int, classes: int, wide: int, extra: bool, programs: int = 1,
    dtype: torch.dtype = torch.bfloat16,
) -> CompileCase:  # fmt: skip
    values = _tiles(width, dtype, wide) | {"PRECISION": "tf32", "classes": classes}
    warps, stages = values.pop("num_warps"), values.pop("num_stages")
    if not extra:
        values |= {"bias": None, "before": None, "bonus": None}
    if kernel is _forward:
        values["SHARE"] = classes
    narrow = dtype == torch.bfloat16
    known = dict.fromkeys(("x", "weight", "result"), "*bf16" if narrow else "*fp32")
    known |= dict.fromkeys(("target", "before", "bests"), "*i64")
    floats = "bias bonus tops hits logsums grad grad_bias grad_bonus"
    types = argument_types(kernel, values, **known, **dict.fromkeys(floats.split(), "*fp32"))
    name += f" {width} x {classes}{', bias and bonus' * extra}{', float32' * (not narrow)}"
    return CompileCase(name, kernel, types, values, warps, stages, programs, wgmma=narrow)


COMPILE_CASES = [
    _case(_forward, "entropy", 576, 1024, 256, False),
    _case(_forward, "entropy", 576, 1024, 128, True),
    _case(_backward, "entropy backward", 576, 1024, 128, True),
    _case(_backward, "entropy backward", 768, 32768, 128, False, 2),
    _case(_backward, "entropy backward", 576, 1024, 64, True, 3, torch.float32),
]
