"""SwiGLU, in one pass over memory each way; the backward pass recomputes the gate."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.compile_check import CompileCase
from kernels.rows import argument_types, cdiv, next_power_of_2


def swiglu(gate_up: Tensor) -> Tensor:
    """Compute `kernels.swiglu`."""
    return _swiglu(gate_up)


@triton.jit
def _tile_position(count, WIDTH: tl.constexpr, TILE: tl.constexpr, ROWS: tl.constexpr) -> Any:
    """Return rows in int64, columns and mask of this program's tile; columns vary fastest."""
    across: tl.constexpr = (WIDTH + TILE - 1) // TILE
    program = tl.program_id(0)
    row = (program // across * ROWS + tl.arange(0, ROWS))[:, None]
    column = (program % across * TILE + tl.arange(0, TILE))[None]
    return row.to(tl.int64), column, (row < count) & (column < WIDTH)


@triton.jit
def _forward(
    gate_up, gated, count, WIDTH: tl.constexpr, TILE: tl.constexpr, ROWS: tl.constexpr
):  # fmt: skip
    position = _tile_position(count, WIDTH, TILE, ROWS)
    row, column, mask = position
    start = gate_up + row * (2 * WIDTH) + column
    gate = tl.load(start, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(start + WIDTH, mask=mask, other=0.0).to(tl.float32)
    value = gate * tl.sigmoid(gate) * up
    tl.store(gated + row * WIDTH + column, value.to(gated.dtype.element_ty), mask=mask)


@triton.jit
def _backward(
    gate_up, grad, result, count, WIDTH: tl.constexpr, TILE: tl.constexpr, ROWS: tl.constexpr
):  # fmt: skip
    """Compute the gradient with d silu(g) / dg = s + g s (1 - s), s = sigmoid(g)."""
    position = _tile_position(count, WIDTH, TILE, ROWS)
    row, column, mask = position
    pair = row * (2 * WIDTH) + column
    gate = tl.load(gate_up + pair, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(gate_up + pair + WIDTH, mask=mask, other=0.0).to(tl.float32)
    grad_out = tl.load(grad + row * WIDTH + column, mask=mask, other=0.0).to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    silu = gate * sigmoid
    dtype = result.dtype.element_ty
    grad_gate = grad_out * up * (sigmoid + silu * (1 - sigmoid))
    tl.store(result + pair, grad_gate.to(dtype), mask=mask)
    tl.store(result + pair + WIDTH, (grad_out * silu).to(dtype), mask=mask)


def _tiles(width: int, count: int) -> tuple[int, dict[str, Any]]:
    """Choose the widest tile that wastes at most a sixteenth; return the programs and its sizes.

    2,688 columns take 11 tiles of 256, but 3 of 1,024, which waste a seventh.
    """
    wide = min(1024, next_power_of_2(width))
    while wide > 64 and -width % wide > width // 16:
        wide //= 2
    rows = 2048 // wide
    programs = cdiv(width, wide) * cdiv(count, rows)
    return programs, {"WIDTH": width, "TILE": wide, "ROWS": rows, "num_warps": 4}


@torch.library.custom_op("dreamstage::swiglu", mutates_args=())
def _swiglu(gate_up: Tensor) -> Tensor:
    gate_up = gate_up.contiguous()
    width = gate_up.shape[-1] // 2
    gated = gate_up.new_empty((*gate_up.shape[:-1], width))
    if gated.numel():
        count = gated.numel() // width
        programs, tiles = _tiles(width, count)
        _forward[(programs,)](gate_up, gated, count, **tiles)
    return gated


@torch.library.custom_op("dreamstage::swiglu_backward", mutates_args=())
def _swiglu_backward(gate_up: Tensor, grad: Tensor) -> Tensor:
    gate_up, grad = gate_up.contiguous(), grad.contiguous()
    result = torch.empty_like(gate_up)
    if grad.numel():
        width = grad.shape[-1]
        count = grad.numel() // width
        programs, tiles = _tiles(width, count)
        _backward[(programs,)](gate_up, grad, result, count, **tiles)
    return result


@_swiglu.register_fake
def _(gate_up: Tensor) -> Tensor:
    return gate_up.new_empty((*gate_up.shape[:-1], gate_up.shape[-1] // 2))


@_swiglu_backward.register_fake
def _(gate_up: Tensor, grad: Tensor) -> Tensor:
    return gate_up.new_empty(gate_up.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _autograd_backward(ctx: Any, grad: Tensor) -> Tensor:
    (gate_up,) = ctx.saved_tensors
    return _swiglu_backward(gate_up, grad)


_swiglu.register_autograd(_autograd_backward, setup_context=_setup_context)


def _cases(width: int, forth: int, back: int, dtype: str = "bf16") -> list[CompileCase]:
    """List both passes, so many programs of each at once."""
    tiles = _tiles(width, 1)[1]
    warps, name = tiles.pop("num_warps"), f"{width}, {dtype}"
    types = argument_types(_forward, tiles, gate_up=f"*{dtype}", gated=f"*{dtype}")
    types_back = argument_types(
        _backward, tiles, gate_up=f"*{dtype}", grad=f"*{dtype}", result=f"*{dtype}"
    )
    return [
        CompileCase(f"swiglu {name}", _forward, types, tiles, warps, min_programs=forth),
        CompileCase(
            f"swiglu backward {name}", _backward, types_back, tiles, warps, min_programs=back
        ),
    ]


COMPILE_CASES = _cases(1536, 12, 10) + _cases(2688, 16, 10) + _cases(1536, 12, 8, "fp32")
