"""The gates of a GRU, with the LayerNorm before them, in one pass over memory each way.

A row of three parts stays in registers from its one read to its one write.  Backward, the gates are
recomputed from the parts; mean and scale are kept, two numbers a row.  Each program iterates over
many rows and sums its own share of the gradients of weight and bias; the shares are summed
afterwards, always in the same order.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import reference
from kernels.compile_check import CompileCase
from kernels.rows import (
    argument_types,
    cdiv,
    max_stages,
    next_power_of_2,
    num_programs,
    sum_partials,
)

# elements of a tile, and of a thread
FORWARD = 1024, 8
# backward, also warps of a multiprocessor: with LayerNorm, where a row fills its tile and where it
# does not, which takes more registers; without LayerNorm
FILLED, PADDED, BARE = (2048, 16, 8), (1024, 8, 12), (1024, 8, 24)
# backward: tiles of rows that are loaded at a time
STAGES = 3
# with LayerNorm, the sums of six wider rows do not fit in one multiprocessor's registers
MAX_DIM = 2048


def gru_step(
    parts: Tensor,
    state: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-3,
) -> Tensor:
    """Compute `kernels.gru_step`; very wide states with LayerNorm are left to PyTorch."""
    if weight is None or bias is None:
        weight = bias = None
    elif state.shape[-1] > MAX_DIM:
        return reference.gru_step(parts, state, weight, bias, eps)
    return _gru_step(parts, state, weight, bias, eps)[0]


@triton.jit
def _part(source, offset, number, mask, WIDTH: tl.constexpr):
    """Load one of three parts that lie WIDTH apart."""
    return tl.load(source + offset + number * WIDTH, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _mean(first, second, third, WIDTH: tl.constexpr):
    """Compute the mean over three parts of each row, (ROWS, 1)."""
    return tl.sum(first + second + third, axis=1)[:, None] / (3 * WIDTH)


@triton.jit
def _sigmoid(x, SWIFT: tl.constexpr):
    """Compute 1 / (1 + exp(-x)), by a root instead of a division where the result has 16 bits:
    these kernels are nearly bound by their instructions."""
    if SWIFT:
        root = tl.rsqrt(1 + tl.exp2(x * -1.4426950408889634))
        return root * root
    else:
        return tl.sigmoid(x)


@triton.jit
def _tanh(x, SWIFT: tl.constexpr):
    # through the sigmoid, which is finite everywhere
    if SWIFT:
        root = tl.rsqrt(1 + tl.exp2(x * -2.8853900817779268))
        return 2 * root * root - 1
    else:
        return 2 * tl.sigmoid(2 * x) - 1


@triton.jit
def _centered(x, mean, within, WIDTH: tl.constexpr, TILE: tl.constexpr):
    x -= mean
    if WIDTH < TILE:
        x = tl.where(within, x, 0.0)
    return x


@triton.jit
def _affine(x, weight, bias, column, number, within, WIDTH: tl.constexpr):
    """Apply weight and bias of a part, loaded from the cache for every row: kept, they would take
    registers that prefetched rows need."""
    by = _part(weight, column, number, within, WIDTH)
    return x * by + _part(bias, column, number, within, WIDTH)


@triton.jit
def _forward(
    parts, state, weight, bias, result, moments, count, eps,
    WIDTH: tl.constexpr, TILE: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Take a step of ROWS rows.

    moments: (count, 2) float32, the mean of each row's parts and their scale in the LayerNorm.
    """
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None].to(tl.int64)
    column = tl.arange(0, TILE)[None]
    within = column < WIDTH
    mask = (row < count) & within
    offset = row * (3 * WIDTH) + column
    reset = _part(parts, offset, 0, mask, WIDTH)
    candidate = _part(parts, offset, 1, mask, WIDTH)
    update = _part(parts, offset, 2, mask, WIDTH)
    old = _part(state, row * WIDTH + column, 0, mask, WIDTH)
    if weight is not None:
        mean = _mean(reset, candidate, update, WIDTH)
        reset = _centered(reset, mean, within, WIDTH, TILE)
        candidate = _centered(candidate, mean, within, WIDTH, TILE)
        update = _centered(update, mean, within, WIDTH, TILE)
        square = _mean(reset * reset, candidate * candidate, update * update, WIDTH)
        scale = tl.rsqrt(square + eps)
        tl.store(moments + 2 * row, mean, mask=row < count)
        tl.store(moments + 2 * row + 1, scale, mask=row < count)
        reset = _affine(reset * scale, weight, bias, column, 0, within, WIDTH)
        candidate = _affine(candidate * scale, weight, bias, column, 1, within, WIDTH)
        update = _affine(update * scale, weight, bias, column, 2, within, WIDTH)
    swift: tl.constexpr = parts.dtype.element_ty.primitive_bitwidth <= 16
    fresh = _tanh(_sigmoid(reset, swift) * candidate, swift)
    value = old + _sigmoid(update - 1, swift) * (fresh - old)
    tl.store(result + row * WIDTH + column, value.to(result.dtype.element_ty), mask=mask)


@triton.jit
def _store_three(target, offset, first, second, third, mask, WIDTH: tl.constexpr):
    dtype = target.dtype.element_ty
    tl.store(target + offset, first.to(dtype), mask=mask)
    tl.store(target + offset + WIDTH, second.to(dtype), mask=mask)
    tl.store(target + offset + 2 * WIDTH, third.to(dtype), mask=mask)


@triton.jit
def _gate_grads(reset, candidate, update, old, up, SWIFT: tl.constexpr):
    """Compute the gradients of the three gates' arguments and of the old state, for the gradient
    `up` of the next state."""
    gate, keep = _sigmoid(reset, SWIFT), _sigmoid(update - 1, SWIFT)
    fresh = _tanh(gate * candidate, SWIFT)
    kept = up * keep
    inner = kept * (1 - fresh * fresh) * gate
    update = (fresh - old) * (kept - kept * keep)
    return (inner - inner * gate) * candidate, inner, update, up - kept


@triton.jit
def _backward(
    parts, state, weight, bias, moments, grad, grad_parts, grad_state, shares, count,
    WIDTH: tl.constexpr, TILE: tl.constexpr, ROWS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of parts and state, ROWS rows at a time.

    shares: (programs, 6 WIDTH) float32, sums over a program's rows of the gradients of weight and
    of bias.
    """
    column = tl.arange(0, TILE)[None]
    within = column < WIDTH
    if weight is not None:
        zeros = tl.zeros((ROWS, TILE), tl.float32)
        w_reset, w_candidate, w_update = zeros, zeros, zeros
        b_reset, b_candidate, b_update = zeros, zeros, zeros
    tiles = tl.cdiv(count, ROWS)
    swift: tl.constexpr = parts.dtype.element_ty.primitive_bitwidth <= 16
    for step in tl.range(tl.program_id(0), tiles, tl.num_programs(0), num_stages=STAGES):
        row = (step * ROWS + tl.arange(0, ROWS))[:, None].to(tl.int64)
        mask = (row < count) & within
        offset = row * (3 * WIDTH) + column
        reset = _part(parts, offset, 0, mask, WIDTH)
        candidate = _part(parts, offset, 1, mask, WIDTH)
        update = _part(parts, offset, 2, mask, WIDTH)
        old = _part(state, row * WIDTH + column, 0, mask, WIDTH)
        up = _part(grad, row * WIDTH + column, 0, mask, WIDTH)
        if weight is not None:
            mean = tl.load(moments + 2 * row, mask=row < count, other=0.0)
            scale = tl.load(moments + 2 * row + 1, mask=row < count, other=0.0)
            x_reset = _centered(reset, mean, within, WIDTH, TILE) * scale
            x_candidate = _centered(candidate, mean, within, WIDTH, TILE) * scale
            x_update = _centered(update, mean, within, WIDTH, TILE) * scale
            reset = _affine(x_reset, weight, bias, column, 0, within, WIDTH)
            candidate = _affine(x_candidate, weight, bias, column, 1, within, WIDTH)
            update = _affine(x_update, weight, bias, column, 2, within, WIDTH)
        pulled = _gate_grads(reset, candidate, update, old, up, swift)
        reset, candidate, update, old = pulled
        tl.store(grad_state + row * WIDTH + column, old.to(grad_state.dtype.element_ty), mask=mask)
        if weight is not None:
            w_reset += reset * x_reset
            w_candidate += candidate * x_candidate
            w_update += update * x_update
            b_reset += reset
            b_candidate += candidate
            b_update += update
            reset *= _part(weight, column, 0, within, WIDTH)
            candidate *= _part(weight, column, 1, within, WIDTH)
            update *= _part(weight, column, 2, within, WIDTH)
            mean = _mean(reset, candidate, update, WIDTH) * scale
            along = _mean(reset * x_reset, candidate * x_candidate, update * x_update, WIDTH)
            along *= scale
            reset = reset * scale - (x_reset * along + mean)
            candidate = candidate * scale - (x_candidate * along + mean)
            update = update * scale - (x_update * along + mean)
        _store_three(grad_parts, offset, reset, candidate, update, mask, WIDTH)
    if weight is not None:
        own = tl.program_id(0).to(tl.int64) * (6 * WIDTH) + column
        _store_three(
            shares, own, tl.sum(w_reset, axis=0)[None], tl.sum(w_candidate, axis=0)[None],
            tl.sum(w_update, axis=0)[None], within, WIDTH,
        )  # fmt: skip
        _store_three(
            shares, own + 3 * WIDTH, tl.sum(b_reset, axis=0)[None],
            tl.sum(b_candidate, axis=0)[None], tl.sum(b_update, axis=0)[None], within, WIDTH,
        )  # fmt: skip


def _tiles(width: int, elements: int, each: int) -> dict[str, Any]:
    columns = next_power_of_2(width)
    rows = max(1, elements // columns)
    warps = max(1, min(16, columns * rows // (32 * each)))
    return {"WIDTH": width, "TILE": columns, "ROWS": rows, "num_warps": warps}


def _backward_tiles(width: int, itemsize: int, learned: int) -> tuple[dict[str, Any], int]:
    """Choose the tiles of the backward pass, and the warps of a multiprocessor.

    learned: bytes of an element of weight and bias, 0 where there are none.
    """
    normed_shape = FILLED if next_power_of_2(width) == width else PADDED
    elements, each, warps = normed_shape if learned else BARE
    tiles = _tiles(width, elements, each)
    # five inputs, three parts each of weight, bias and weight again
    bytes_each = 14 * tiles["ROWS"] * tiles["TILE"] * itemsize
    # a third tile in flight takes registers that wider weights, or more rows, need
    full = learned and (learned > itemsize or tiles["ROWS"] > 2)
    return tiles | {"STAGES": max_stages(2 if full else STAGES, bytes_each)}, warps


@torch.library.custom_op("dreamstage::gru_step", mutates_args=())
def _gru_step(
    parts: Tensor, state: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """Return the next state, and each row's moments, (count, 2), empty without LayerNorm."""
    parts, state, weight, bias = _contiguous(parts, state, weight, bias)
    result, moments = torch.empty_like(state), _fresh_moments(state, weight)
    if state.numel():
        width = state.shape[-1]
        count, tiles = state.numel() // width, _tiles(width, *FORWARD)
        _forward[(cdiv(count, tiles["ROWS"]),)](
            parts, state, weight, bias, result, moments, count, eps, **tiles
        )
    return result, moments


def _fresh_moments(state: Tensor, weight: Tensor | None) -> Tensor:
    count = 0 if weight is None else state.numel() // state.shape[-1]
    return state.new_empty((count, 2), dtype=torch.float32)


def _contiguous(*given: Tensor | None) -> Any:
    return (None if x is None else x.contiguous() for x in given)


@torch.library.custom_op("dreamstage::gru_step_backward", mutates_args=())
def _gru_step_backward(
    parts: Tensor,
    state: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    moments: Tensor,
    grad: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of parts and state, and of weight and bias, (2, 3D) or empty."""
    parts, state, weight, bias, grad = _contiguous(parts, state, weight, bias, grad)
    grad_parts, grad_state = torch.empty_like(parts), torch.empty_like(state)
    width = state.shape[-1]
    learned = parts.new_zeros(_learned(weight, width), dtype=torch.float32)
    if not state.numel():
        return grad_parts, grad_state, learned
    count = state.numel() // width
    tiles, warps = _backward_tiles(
        width, parts.element_size(), 0 if weight is None else weight.itemsize
    )
    programs = num_programs(parts, warps, tiles, count)
    shares = None
    if weight is not None:
        shares = parts.new_empty((programs, 6 * width), dtype=torch.float32)
    _backward[(programs,)](
        parts, state, weight, bias, moments, grad, grad_parts, grad_state, shares, count, **tiles,
    )  # fmt: skip
    if shares is not None:
        learned = sum_partials(shares, torch.float32).view(2, -1)
    return grad_parts, grad_state, learned


def _learned(weight: Tensor | None, width: int) -> tuple[int, int]:
    return (2, 3 * width) if weight is not None else (0, 0)


@_gru_step.register_fake
def _(
    parts: Tensor, state: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    return state.new_empty(state.shape), _fresh_moments(state, weight)


@_gru_step_backward.register_fake
def _(
    parts: Tensor,
    state: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    moments: Tensor,
    grad: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    shape = _learned(weight, state.shape[-1])
    learned = parts.new_empty(shape, dtype=torch.float32)
    return parts.new_empty(parts.shape), state.new_empty(state.shape), learned


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, moments = output
    ctx.mark_non_differentiable(moments)
    ctx.save_for_backward(*inputs[:-1], moments)


def _autograd_backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    parts, state, weight, bias, moments = ctx.saved_tensors
    found = _gru_step_backward(parts, state, weight, bias, moments, grad)
    grad_parts, grad_state, learned = found
    if weight is None:
        return grad_parts, grad_state, None, None, None
    grad_weight, grad_bias = learned.unbind()
    return grad_parts, grad_state, grad_weight.to(weight.dtype), grad_bias.to(bias.dtype), None


_gru_step.register_autograd(_autograd_backward, setup_context=_setup_context)


def _case(
    name: str, kernel: Any, tiles: dict[str, Any], normed: bool, programs: int, dtype: str,
    param_dtype: str,
) -> CompileCase:  # fmt: skip
    learned = ("weight", "bias", "moments", "shares")
    absent = [] if normed else [x for x in kernel.arg_names if x in learned]
    values: dict[str, Any] = tiles | dict.fromkeys(absent)
    warps = values.pop("num_warps")
    pointers = ("parts", "state", "result", "grad", "grad_parts", "grad_state")
    known = dict.fromkeys(pointers, f"*{dtype}") | {"eps": "fp32"}
    known |= dict.fromkeys(learned, "*fp32") | dict.fromkeys(learned[:2], f"*{param_dtype}")
    types = argument_types(kernel, values, **known)
    name += f" {tiles['WIDTH']}, {dtype}" + f", LayerNorm in {param_dtype}" * normed
    return CompileCase(name, kernel, types, values, warps, min_programs=programs)


def _cases(
    width: int, normed: bool, forth: int, back: int, dtype: str = "bf16", param_dtype: str = "fp32"
) -> list[CompileCase]:
    """List both passes, so many programs of each at once."""
    sizes = {"bf16": 2, "fp32": 4}
    tiles_back = _backward_tiles(width, sizes[dtype], sizes[param_dtype] * normed)[0]
    tiles = _tiles(width, *FORWARD)
    return [
        _case("gru_step", _forward, tiles, normed, forth, dtype, param_dtype),
        _case("gru_step backward", _backward, tiles_back, normed, back, dtype, param_dtype),
    ]


COMPILE_CASES = [
    *_cases(600, False, 16, 10),
    *_cases(512, True, 8, 2),
    *_cases(600, True, 9, 3),
    *_cases(600, True, 8, 2, "fp32"),
    *_cases(1024, True, 9, 2, param_dtype="bf16"),
    *_cases(MAX_DIM, False, 8, 4),
    *_cases(MAX_DIM, True, 4, 2),
]
