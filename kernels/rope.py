"""Rotary position embedding, in one pass over memory each way.

The backward pass is the inverse rotation.  Heads of one position are neighbors in a tile, wherever
they lie in memory: they share their angles, which would otherwise be loaded as often as x.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.compile_check import CompileCase
from kernels.rows import argument_types, cdiv, next_power_of_2, row_offsets


def apply_rope(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Compute `kernels.apply_rope`; x may be any view whose last axis has stride 1.

    The angles get no gradient.
    """
    if x.dim() != 4:
        return apply_rope(_as_4d(x), cosine, sine).view(x.shape)
    return _apply_rope(x, cosine, sine, False)


def _as_4d(x: Tensor) -> Tensor:
    """View (..., S, D) as (B, H, S, D)."""
    if x.dim() < 4:
        return x[(None,) * (4 - x.dim())]
    return x.flatten(0, -4)


@triton.jit
def _rope_kernel(
    x, cosine, sine, rotated, count, positions, heads,
    x_outer, x_middle, x_last, rotated_outer, rotated_middle, rotated_last,
    HALF: tl.constexpr, TILE: tl.constexpr, ROWS: tl.constexpr, INVERSE: tl.constexpr,
):  # fmt: skip
    """Rotate ROWS rows of 2 HALF channels; rows are ordered by clip, position, head."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, TILE)[None]
    mask = (row < count)[:, None] & (column < HALF)
    start = row_offsets(row, positions, heads, x_outer, x_middle, x_last)[:, None] + column
    first = tl.load(x + start, mask=mask, other=0.0).to(tl.float32)
    second = tl.load(x + start + HALF, mask=mask, other=0.0).to(tl.float32)
    angle = (row // heads % positions)[:, None] * HALF + column
    cos = tl.load(cosine + angle, mask=mask, other=0.0).to(tl.float32)
    sin = tl.load(sine + angle, mask=mask, other=0.0).to(tl.float32)
    if INVERSE:
        sin = -sin
    to = row_offsets(row, positions, heads, rotated_outer, rotated_middle, rotated_last)[:, None]
    dtype = rotated.dtype.element_ty
    tl.store(rotated + to + column, (first * cos - second * sin).to(dtype), mask=mask)
    tl.store(rotated + to + HALF + column, (first * sin + second * cos).to(dtype), mask=mask)


def _tiles(half: int, inverse: bool) -> dict[str, Any]:
    width = next_power_of_2(half)
    rows = max(1, 2048 // width)
    return {"HALF": half, "TILE": width, "ROWS": rows, "INVERSE": inverse, "num_warps": 4}


@torch.library.custom_op("dreamstage::apply_rope", mutates_args=())
def _apply_rope(x: Tensor, cosine: Tensor, sine: Tensor, inverse: bool) -> Tensor:
    """Rotate x, (B, H, S, E), by the angles or, if inverse, by their opposite."""
    x = x if x.stride(-1) == 1 else x.contiguous()
    rotated = torch.empty_like(x)
    clips, heads, positions, width = x.shape
    assert cosine.shape == sine.shape == (positions, width // 2), "angles and x do not fit"
    if x.numel():
        count, tiles = clips * heads * positions, _tiles(width // 2, inverse)
        _rope_kernel[(cdiv(count, tiles["ROWS"]),)](
            x, cosine.contiguous(), sine.contiguous(), rotated, count, positions, heads,
            x.stride(0), x.stride(2), x.stride(1),
            rotated.stride(0), rotated.stride(2), rotated.stride(1), **tiles,
        )  # fmt: skip
    return rotated


@_apply_rope.register_fake
def _(x: Tensor, cosine: Tensor, sine: Tensor, inverse: bool) -> Tensor:
    return torch.empty_like(x if x.stride(-1) == 1 else x.contiguous())


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, cosine, sine, ctx.inverse = inputs
    ctx.save_for_backward(cosine, sine)


def _autograd_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
    return _apply_rope(grad, *ctx.saved_tensors, not ctx.inverse), None, None, None


_apply_rope.register_autograd(_autograd_backward, setup_context=_setup_context)


def _case(
    heads: int, positions: int, width: int, inverse: bool, dtype: str = "bf16", programs: int = 9
) -> CompileCase:
    values = _tiles(width // 2, inverse) | {"heads": heads, "positions": positions}
    warps = values.pop("num_warps")
    # a view of a packed projection, rotated into a dense one
    x = {"x_outer": 3 * heads * width * positions, "x_middle": 3 * heads * width}
    rotated = {"rotated_outer": heads * width * positions, "rotated_middle": heads * width}
    values |= x | rotated | {"x_last": width, "rotated_last": width}
    pointers = {"x": f"*{dtype}", "cosine": "*fp32", "sine": "*fp32", "rotated": f"*{dtype}"}
    types = argument_types(_rope_kernel, values, **pointers)
    name = f"apply_rope{' inverse' * inverse} {heads} x {width}, {dtype}"
    return CompileCase(name, _rope_kernel, types, values, warps, min_programs=programs)


COMPILE_CASES = [
    _case(9, 1024, 64, False),
    _case(9, 1024, 64, True),
    _case(16, 256, 128, False),
    _case(9, 1024, 64, False, "fp32", programs=6),
]
