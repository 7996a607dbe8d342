"""Attention under a block mask: masked tiles are skipped, fully visible tiles need no mask.

Up to SHORT keys, one program processes several sequences at once (flash_short.py).  Longer ones go
by tiles (flash_forward.py, flash_backward.py).  There the keys are rotated once, in a kernel of its
own, where three or more tiles of queries would have to rotate them again; with fewer, they are
rotated as they are loaded, and no rotated copy is written.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from kernels import eager
from kernels.compile_check import CompileCase
from kernels.dispatch import SHORT, interpreted
from kernels.flash_backward import backward_keys_kernel, backward_queries_kernel, delta_kernel
from kernels.flash_forward import forward_kernel, rotate_kernel
from kernels.flash_launch import (
    MAX_HEAD_DIM,
    angles_or,
    attention_case,
    constants,
    in_rows,
    launch,
    log2_scale,
    next_power_of_2,
    num_tiles,
    padded_head_dim,
    register_gradient,
    rows_like,
    sizes,
    strides,
)
from kernels.flash_short import short_attention, short_attention_with_cache
from kernels.reference import BlockMask

ROTATED_ROWS = 64


def attention(
    q: Tensor, k: Tensor, v: Tensor, block_mask: BlockMask, angles: tuple[Tensor, Tensor] | None
) -> Tensor:
    """Compute `kernels.attention`; odd and very wide heads are left to PyTorch."""
    if q.shape[-1] > MAX_HEAD_DIM or q.shape[-1] % 2:
        return eager.attention(q, k, v, block_mask, angles)
    dtype = torch.promote_types(torch.promote_types(q.dtype, k.dtype), v.dtype)
    if interpreted():  # the interpreter is wrong in bfloat16
        dtype = torch.float32
    qkv = [in_rows(x.to(dtype)) for x in (q, k, v)]
    mask_args = _mask_args(block_mask, k.shape[2], angles)
    if k.shape[2] <= SHORT:
        return short_attention(*qkv, *mask_args).to(q.dtype)
    return flash_attention(*qkv, *mask_args)[0].to(q.dtype)


def attention_with_cache(
    q: Tensor, k: Tensor, v: Tensor, cache: tuple[Tensor, Tensor], block_mask: BlockMask,
    angles: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Compute `kernels.attention_with_cache`, in one kernel; cache and keys are concatenated first
    where dtypes differ, gradients are on, or there are more than SHORT keys."""
    keys = cache[0].shape[2] + k.shape[2]
    dtypes = {x.dtype for x in (q, k, v, *cache)}
    # the interpreter is wrong in bfloat16
    supported = {torch.float32} if interpreted() else {torch.float32, torch.float16, torch.bfloat16}
    fits = keys <= SHORT and q.shape[-1] <= MAX_HEAD_DIM and q.shape[-1] % 2 == 0
    if not fits or len(dtypes) > 1 or not dtypes <= supported or torch.is_grad_enabled():
        k, v = eager.concat_cache(cache, k, v)
        return attention(q, k, v, block_mask, angles), k, v
    tensors = [in_rows(x) for x in (q, k, v, *cache)]
    return short_attention_with_cache(*tensors, *_mask_args(block_mask, keys, angles))


def _mask_args(
    block_mask: BlockMask, keys: int, angles: tuple[Tensor, Tensor] | None
) -> tuple[Any, ...]:
    """Return angles and mask as the operators take them."""
    cosine, sine = (None, None) if angles is None else (a.contiguous() for a in angles)
    context = block_mask.context_blocks
    if context is not None and context * block_mask.block_size >= keys:
        context = None  # the window holds everything
    return cosine, sine, block_mask.block_size, context, block_mask.causal_within_block


class Tiles(NamedTuple):
    """The tile of a program, and how it is run."""

    rows: int
    """Queries of a tile."""
    columns: int
    """Keys of a tile."""
    warps: int
    stages: int

    def constants(self) -> dict[str, Any]:
        return dict(
            ROWS=self.rows, COLUMNS=self.columns, num_warps=self.warps, num_stages=self.stages
        )  # fmt: skip


def forward_tiles(width: int, itemsize: int) -> Tiles:
    """Choose tiles for three programs, of 12 warps in all, on a multiprocessor; wider heads need
    the registers of the others."""
    if itemsize > 2:
        return Tiles(64, 32, 4, 2)
    return Tiles(64, 64, 4, 3) if width <= 64 else Tiles(128, 64, 8, 3)


def rotating_tiles(width: int, itemsize: int) -> Tiles:
    """Choose tiles where keys are rotated as they are loaded: angles take shared memory as well."""
    tiles = forward_tiles(width, itemsize)
    if itemsize > 2:
        return tiles
    return Tiles(tiles.rows, 64, tiles.rows // 16, 2 if width <= 64 else 1)


def backward_keys_tiles(width: int, itemsize: int) -> Tiles:
    if itemsize > 2:
        return Tiles(32, 32, 4, 2)
    return Tiles(64, 64, 4, 2) if width <= 64 else Tiles(64, 128, 8, 3)


def backward_queries_tiles(width: int, itemsize: int) -> Tiles:
    if itemsize > 2:
        return Tiles(32, 32, 4, 2)
    return Tiles(64, 64, 4, 3) if width <= 64 else Tiles(128, 64, 8, 3)


@torch.library.custom_op("dreamstage::flash_attention", mutates_args=())
def flash_attention(
    q: Tensor, k: Tensor, v: Tensor, cosine: Tensor | None, sine: Tensor | None,
    size: int, context: int | None, causal_within_block: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the output (B, H, Q, E), log2 of the softmax's sums (B * H, Q), and the rotated keys,
    (B, H, K, E), or an empty tensor where a kernel rotates them as it loads them."""
    out = rows_like(q)
    log_sums = q.new_empty(q.shape[0] * q.shape[1], q.shape[2], dtype=torch.float32)
    rotated = q.new_empty(_rotated_shape(q, k, cosine))
    if not q.numel():
        return out, log_sums, rotated
    if rotated.numel():
        _rotate(k, rotated, cosine, sine, 0)
        k = rotated
    rotate_keys = cosine is not None and not rotated.numel()
    tiles_of = rotating_tiles if rotate_keys else forward_tiles
    tiles = tiles_of(padded_head_dim(q), q.element_size())
    launch(
        forward_kernel, num_tiles(q, q.shape[2], tiles.rows),
        q, k, v, out, log_sums, *angles_or(q, cosine, sine), *strides(q, k, v, out), *sizes(q, k),
        size, context or 0, log2_scale(q), ROTATE_KEYS=rotate_keys, **tiles.constants(),
        **constants(q, cosine, context, causal_within_block),
    )  # fmt: skip
    return out, log_sums, rotated


@flash_attention.register_fake
def _(q, k, v, cosine, sine, size, context, causal_within_block):
    log_sums = q.new_empty(q.shape[0] * q.shape[1], q.shape[2], dtype=torch.float32)
    return rows_like(q), log_sums, q.new_empty(_rotated_shape(q, k, cosine))


@torch.library.custom_op("dreamstage::flash_attention_backward", mutates_args=())
def flash_attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, log_sums: Tensor, rotated: Tensor,
    cosine: Tensor | None, sine: Tensor | None, size: int, context: int | None,
    causal_within_block: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    grad_q, grad_k, grad_v = (rows_like(x) for x in (q, k, v))
    if not q.numel():
        return grad_q, grad_k.zero_(), grad_v.zero_()
    grad = in_rows(grad)
    if cosine is not None:
        if not rotated.numel():
            rotated = k.new_empty(k.shape)
            _rotate(k, rotated, cosine, sine, 0)
        k, unrotated = rotated, q
        q = q.new_empty(q.shape)
        _rotate(unrotated, q, cosine, sine, k.shape[2] - q.shape[2])
    delta = torch.empty_like(log_sums)
    launch(
        delta_kernel, num_tiles(q, q.shape[2], ROTATED_ROWS),
        out, grad, delta, *strides(out, grad), q.shape[1], q.shape[2],
        HEAD=q.shape[3], WIDTH=padded_head_dim(q), ROWS=ROTATED_ROWS,
    )  # fmt: skip
    shared = constants(q, cosine, context, causal_within_block)
    mask_args = (size, context or 0, log2_scale(q), q.shape[3] ** -0.5)
    tiles = backward_keys_tiles(padded_head_dim(q), q.element_size())
    launch(
        backward_keys_kernel, num_tiles(q, k.shape[2], tiles.columns),
        q, k, v, grad, log_sums, delta, grad_k, grad_v, *angles_or(q, cosine, sine),
        *strides(q, k, v, grad, grad_k, grad_v), *sizes(q, k), *mask_args,
        **shared, **tiles.constants(),
    )  # fmt: skip
    tiles = backward_queries_tiles(padded_head_dim(q), q.element_size())
    launch(
        backward_queries_kernel, num_tiles(q, q.shape[2], tiles.rows),
        q, k, v, grad, log_sums, delta, grad_q, *angles_or(q, cosine, sine),
        *strides(q, k, v, grad, grad_q), *sizes(q, k), *mask_args,
        **shared, **tiles.constants(),
    )  # fmt: skip
    return grad_q, grad_k, grad_v


@flash_attention_backward.register_fake
def _(grad, q, k, v, out, log_sums, rotated, cosine, sine, size, context, causal_within_block):
    return rows_like(q), rows_like(k), rows_like(v)


register_gradient(flash_attention, flash_attention_backward)


def _rotate(
    x: Tensor, rotated: Tensor, cosine: Tensor | None, sine: Tensor | None, first_position: int
) -> None:
    """Write x, (B, H, S, E), rotated by the angles of positions `first_position` and on."""
    launch(
        rotate_kernel, num_tiles(x, x.shape[2], ROTATED_ROWS),
        x, rotated, cosine, sine, *strides(x), x.shape[1], x.shape[2], first_position,
        HEAD=x.shape[3], WIDTH=padded_head_dim(x), ROWS=ROTATED_ROWS,
    )  # fmt: skip


def _rotated_shape(q: Tensor, k: Tensor, cosine: Tensor | None) -> tuple[int, ...]:
    """Return the shape of the rotated keys, (0,) where no rotated copy is written."""
    tiles = forward_tiles(padded_head_dim(q), q.element_size())
    return (0,) if cosine is None or q.shape[2] <= 2 * tiles.rows else tuple(k.shape)


def _tiled_cases(
    head: int, programs: tuple[int, int, int], note: str = "", dtype: str = "bf16", **flags: bool
) -> list[CompileCase]:
    """List the forward pass, and backward of keys and of queries, so many programs of each at
    once."""
    shape = next_power_of_2(head), 2 if dtype == "bf16" else 4
    more: dict[str, Any] = dict(HEAD=head, dtype=dtype, wgmma=dtype == "bf16", ROTATE_KEYS=False)
    more |= flags
    forward, keys_programs, queries_programs = programs
    inputs = "q k v grad logs delta"
    return [
        attention_case(
            f"flash{note}", forward_kernel, forward, "q k v out logs", "q k v out",
            **forward_tiles(*shape).constants(), **more,
        ),
        attention_case(
            f"flash{note}, gradient of keys", backward_keys_kernel, keys_programs,
            f"{inputs} grad_k grad_v", "q k v grad grad_k grad_v",
            **backward_keys_tiles(*shape).constants(), **more,
        ),
        attention_case(
            f"flash{note}, gradient of queries", backward_queries_kernel, queries_programs,
            f"{inputs} grad_q", "q k v grad grad_q",
            **backward_queries_tiles(*shape).constants(), **more,
        ),
    ]  # fmt: skip


def _other_cases(head: int, programs: tuple[int, int, int]) -> list[CompileCase]:
    """List a single frame, whose keys are rotated as they are loaded, and the kernels that run
    before the others."""
    one_frame, rotate, delta = programs
    return [
        attention_case(
            "flash, one frame", forward_kernel, one_frame, "q k v out logs", "q k v out",
            HEAD=head, ROTATE_KEYS=True, queries=128, keys=128, size=128,
            **rotating_tiles(next_power_of_2(head), 2).constants(),
        ),
        attention_case(
            "flash, rotate", rotate_kernel, rotate, "x rotated", "stride",
            HEAD=head, ROWS=ROTATED_ROWS, rows=1024, past=0, wgmma=False,
        ),
        attention_case(
            "flash, delta", delta_kernel, delta, "out grad delta", "out grad",
            HEAD=head, ROWS=ROTATED_ROWS, wgmma=False,
        ),
    ]  # fmt: skip


COMPILE_CASES = [
    *_tiled_cases(64, (3, 2, 3)),
    *_tiled_cases(64, (3, 2, 3), ", window", WINDOWED=True),
    *_tiled_cases(64, (3, 2, 3), ", token by token", CAUSAL_WITHIN_BLOCK=True),
    *_tiled_cases(64, (3, 2, 3), ", no angles", ROTATE=False),
    *_tiled_cases(64, (3, 3, 4), ", float32", dtype="fp32"),
    *_tiled_cases(128, (1, 1, 1)),
    *_other_cases(64, (2, 8, 12)),
    *_other_cases(128, (1, 5, 9)),
]
