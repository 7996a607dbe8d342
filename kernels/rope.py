"""Rotary position embedding, in one pass over memory each way.

Going back is turning the other way.  Heads of one position are neighbours in a tile, whatever lies
between them in memory: they share their angles, which would otherwise be read as often as x.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.compile_check import Ahead
from kernels.rows import argument_types, cover, row_starts, tile


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """As `kernels.rotate`; x may be any view whose last axis has stride 1.

    Nothing is learned about the angles.
    """
    if x.dim() != 4:
        return rotate(_four(x), cosine, sine).view(x.shape)
    return _rotate(x, cosine, sine, False)


def _four(x: Tensor) -> Tensor:
    """View (..., S, D) as (B, H, S, D)."""
    if x.dim() < 4:
        return x[(None,) * (4 - x.dim())]
    return x.flatten(0, -4)


@triton.jit
def _turn(
    x, cosine, sine, turned, count, positions, heads,
    x_outer, x_middle, x_last, turned_outer, turned_middle, turned_last,
    HALF: tl.constexpr, TILE: tl.constexpr, ROWS: tl.constexpr, BACK: tl.constexpr,
):  # fmt: skip
    """Turn ROWS rows of 2 HALF channels; rows are counted clip by clip, position by position."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, TILE)[None]
    mask = (row < count)[:, None] & (column < HALF)
    start = row_starts(row, positions, heads, x_outer, x_middle, x_last)[:, None] + column
    first = tl.load(x + start, mask=mask, other=0.0).to(tl.float32)
    second = tl.load(x + start + HALF, mask=mask, other=0.0).to(tl.float32)
    angle = (row // heads % positions)[:, None] * HALF + column
    across = tl.load(cosine + angle, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(sine + angle, mask=mask, other=0.0).to(tl.float32)
    if BACK:
        up = -up
    to = row_starts(row, positions, heads, turned_outer, turned_middle, turned_last)[:, None]
    kind = turned.dtype.element_ty
    tl.store(turned + to + column, (first * across - second * up).to(kind), mask=mask)
    tl.store(turned + to + HALF + column, (first * up + second * across).to(kind), mask=mask)


def _tiles(half: int, back: bool) -> dict[str, Any]:
    width = tile(half)
    rows = max(1, 2048 // width)
    return {"HALF": half, "TILE": width, "ROWS": rows, "BACK": back, "num_warps": 4}


@torch.library.custom_op("dreamstage::rotate", mutates_args=())
def _rotate(x: Tensor, cosine: Tensor, sine: Tensor, back: bool) -> Tensor:
    """Turn x, (B, H, S, E), by the angles or back by them."""
    x = x if x.stride(-1) == 1 else x.contiguous()
    turned = torch.empty_like(x)
    clips, heads, positions, width = x.shape
    assert cosine.shape == sine.shape == (positions, width // 2), "angles and x do not fit"
    if x.numel():
        count, tiles = clips * heads * positions, _tiles(width // 2, back)
        _turn[(cover(count, tiles["ROWS"]),)](
            x, cosine.contiguous(), sine.contiguous(), turned, count, positions, heads,
            x.stride(0), x.stride(2), x.stride(1),
            turned.stride(0), turned.stride(2), turned.stride(1), **tiles,
        )  # fmt: skip
    return turned


@_rotate.register_fake
def _(x: Tensor, cosine: Tensor, sine: Tensor, back: bool) -> Tensor:
    return torch.empty_like(x if x.stride(-1) == 1 else x.contiguous())


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, cosine, sine, ctx.back = inputs
    ctx.save_for_backward(cosine, sine)


def _from_turned(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
    return _rotate(grad, *ctx.saved_tensors, not ctx.back), None, None, None


_rotate.register_autograd(_from_turned, setup_context=_keep)


def _case(
    heads: int, positions: int, width: int, back: bool, kind: str = "bf16", programs: int = 9
) -> Ahead:
    values = _tiles(width // 2, back) | {"heads": heads, "positions": positions}
    warps = values.pop("num_warps")
    # a view of a packed projection, turned into one that lies as it does
    x = {"x_outer": 3 * heads * width * positions, "x_middle": 3 * heads * width}
    turned = {"turned_outer": heads * width * positions, "turned_middle": heads * width}
    values |= x | turned | {"x_last": width, "turned_last": width}
    pointers = {"x": f"*{kind}", "cosine": "*fp32", "sine": "*fp32", "turned": f"*{kind}"}
    types = argument_types(_turn, values, **pointers)
    name = f"rotate{' back' * back} {heads} x {width}, {kind}"
    return Ahead(name, _turn, types, values, warps, programs=programs)


AHEAD = [
    _case(9, 1024, 64, False),
    _case(9, 1024, 64, True),
    _case(16, 256, 128, False),
    _case(9, 1024, 64, False, "fp32", programs=6),
]
