"""Attention under a view: tiles out of view are never visited, tiles wholly in view need no mask.

Up to SHORT keys, one program takes several sequences at once (attend_short.py).  Longer ones go by
tiles (attend_forward.py, attend_backward.py).  There the keys are rotated by their angles before,
once, where three or more tiles of queries would have to turn them again while multiplying; with
fewer, they are rotated as they are loaded, and no rotated copy is written.
"""

from __future__ import annotations

from math import e, log2
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kernels import eager
from kernels.compile_check import CompileCase
from kernels.dispatch import SHORT, interpreted
from kernels.flash_backward import backward_keys_kernel, backward_queries_kernel, delta_kernel
from kernels.flash_forward import forward_kernel, rotate_kernel
from kernels.flash_short import short_backward_kernel, short_kernel
from kernels.reference import BlockMask

MAX_HEAD_DIM = 128
ROTATED_ROWS = 64
# of keys and values that programs running together read: a part of the 50 MB that an H200 has
CACHE_BYTES = 20 << 20


def attention(
    q: Tensor, k: Tensor, v: Tensor, block_mask: BlockMask, angles: tuple[Tensor, Tensor] | None
) -> Tensor:
    """As `kernels.attention`; odd and very wide heads are left to PyTorch."""
    if q.shape[-1] > MAX_HEAD_DIM or q.shape[-1] % 2:
        return eager.attention(q, k, v, block_mask, angles)
    dtype = torch.promote_types(torch.promote_types(q.dtype, k.dtype), v.dtype)
    if interpreted():  # it is wrong in bfloat16
        dtype = torch.float32
    qkv, mask_args = (
        [_in_rows(x.to(dtype)) for x in (q, k, v)],
        _mask_args(block_mask, k.shape[2], angles),
    )
    if k.shape[2] <= SHORT:
        return short_attention(*qkv, *mask_args).to(q.dtype)
    return flash_attention(*qkv, *mask_args)[0].to(q.dtype)


def attention_with_cache(
    q: Tensor, k: Tensor, v: Tensor, cache: tuple[Tensor, Tensor], block_mask: BlockMask,
    angles: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """As `kernels.attention_after`: in one kernel, or joined first where types differ, gradients
    are asked for, or there are more than SHORT keys."""
    keys = cache[0].shape[2] + k.shape[2]
    dtypes = {x.dtype for x in (q, k, v, *cache)}
    # the interpreter is wrong in bfloat16
    supported = {torch.float32} if interpreted() else {torch.float32, torch.float16, torch.bfloat16}
    fits = keys <= SHORT and q.shape[-1] <= MAX_HEAD_DIM and q.shape[-1] % 2 == 0
    if not fits or len(dtypes) > 1 or not dtypes <= supported or torch.is_grad_enabled():
        k, v = eager.concat_cache(cache, k, v)
        return attention(q, k, v, block_mask, angles), k, v
    tensors = [_in_rows(x) for x in (q, k, v, *cache)]
    return short_attention_with_cache(*tensors, *_mask_args(block_mask, keys, angles))


def _mask_args(
    block_mask: BlockMask, keys: int, angles: tuple[Tensor, Tensor] | None
) -> tuple[Any, ...]:
    """Angles and view as operators take them."""
    cosine, sine = (None, None) if angles is None else (a.contiguous() for a in angles)
    context = block_mask.context_blocks
    if context is not None and context * block_mask.block_size >= keys:
        context = None  # a window that holds everything
    return cosine, sine, block_mask.block_size, context, block_mask.causal_within_block


class Tiles(NamedTuple):
    """How a kernel divides its work."""

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
    """Three programs of a multiprocessor have 12 warps in all; wider heads need the registers."""
    if itemsize > 2:
        return Tiles(64, 32, 4, 2)
    return Tiles(64, 64, 4, 3) if width <= 64 else Tiles(128, 64, 8, 3)


def rotating_tiles(width: int, itemsize: int) -> Tiles:
    """As `forward_tiles`, where keys are rotated on the way: angles take room as well."""
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


def short_warps(width: int, itemsize: int) -> int:
    return 4 if width <= 64 and itemsize <= 2 else 8


@torch.library.custom_op("dreamstage::attend", mutates_args=())
def flash_attention(
    q: Tensor, k: Tensor, v: Tensor, cosine: Tensor | None, sine: Tensor | None,
    size: int, context: int | None, causal_within_block: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Give the output (B, H, Q, E), log2 sums (B * H, Q), and the rotated keys if they were needed
    before: (B, H, K, E), or nothing."""
    out, log_sums = (
        _rows_like(q),
        q.new_empty(q.shape[0] * q.shape[1], q.shape[2], dtype=torch.float32),
    )
    rotated = q.new_empty(_rotated_shape(q, k, cosine))
    if not q.numel():
        return out, log_sums, rotated
    if rotated.numel():
        _rotate(k, rotated, cosine, sine, 0)
        k = rotated
    rotate_keys = cosine is not None and not rotated.numel()
    tiles_of = rotating_tiles if rotate_keys else forward_tiles
    tiles = tiles_of(_padded_head_dim(q), q.element_size())
    _launch(
        forward_kernel, _programs(q, q.shape[2], tiles.rows),
        q, k, v, out, log_sums, *_angles_or(q, cosine, sine), *_strides(q, k, v, out), *_sizes(q, k),
        size, context or 0, _scale(q), ROTATE_KEYS=rotate_keys, **tiles.constants(),
        **_constants(q, cosine, context, causal_within_block),
    )  # fmt: skip
    return out, log_sums, rotated


@flash_attention.register_fake
def _(q, k, v, cosine, sine, size, context, causal_within_block):
    logs = q.new_empty(q.shape[0] * q.shape[1], q.shape[2], dtype=torch.float32)
    return _rows_like(q), logs, q.new_empty(_rotated_shape(q, k, cosine))


@torch.library.custom_op("dreamstage::attend_backward", mutates_args=())
def flash_attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, log_sums: Tensor, rotated: Tensor,
    cosine: Tensor | None, sine: Tensor | None, size: int, context: int | None, causal_within_block: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    grad_q, grad_k, grad_v = (_rows_like(x) for x in (q, k, v))
    if not q.numel():
        return grad_q, grad_k.zero_(), grad_v.zero_()
    grad = _in_rows(grad)
    if cosine is not None:
        if not rotated.numel():
            rotated = k.new_empty(k.shape)
            _rotate(k, rotated, cosine, sine, 0)
        k, unrotated = rotated, q
        q = q.new_empty(q.shape)
        _rotate(unrotated, q, cosine, sine, k.shape[2] - q.shape[2])
    delta = torch.empty_like(log_sums)
    _launch(
        delta_kernel, _programs(q, q.shape[2], ROTATED_ROWS),
        out, grad, delta, *_strides(out, grad), q.shape[1], q.shape[2],
        HEAD=q.shape[3], WIDTH=_padded_head_dim(q), ROWS=ROTATED_ROWS,
    )  # fmt: skip
    constants = _constants(q, cosine, context, causal_within_block)
    mask_args = (size, context or 0, _scale(q), q.shape[3] ** -0.5)
    tiles = backward_keys_tiles(_padded_head_dim(q), q.element_size())
    _launch(
        backward_keys_kernel, _programs(q, k.shape[2], tiles.columns),
        q, k, v, grad, log_sums, delta, grad_k, grad_v, *_angles_or(q, cosine, sine),
        *_strides(q, k, v, grad, grad_k, grad_v), *_sizes(q, k), *mask_args,
        **constants, **tiles.constants(),
    )  # fmt: skip
    tiles = backward_queries_tiles(_padded_head_dim(q), q.element_size())
    _launch(
        backward_queries_kernel, _programs(q, q.shape[2], tiles.rows),
        q, k, v, grad, log_sums, delta, grad_q, *_angles_or(q, cosine, sine),
        *_strides(q, k, v, grad, grad_q), *_sizes(q, k), *mask_args,
        **constants, **tiles.constants(),
    )  # fmt: skip
    return grad_q, grad_k, grad_v


@flash_attention_backward.register_fake
def _(grad, q, k, v, out, logs, rotated, cosine, sine, size, context, causal_within_block):
    return _rows_like(q), _rows_like(k), _rows_like(v)


@torch.library.custom_op("dreamstage::attend_short", mutates_args=())
def short_attention(
    q: Tensor, k: Tensor, v: Tensor, cosine: Tensor | None, sine: Tensor | None,
    size: int, context: int | None, causal_within_block: bool,
) -> Tensor:  # fmt: skip
    out = _rows_like(q)
    _launch_short(
        q, k, v, None, None, out, None, None, cosine, sine, size, context, causal_within_block
    )
    return out


@short_attention.register_fake
def _(q, k, v, cosine, sine, size, context, causal_within_block):
    return _rows_like(q)


@torch.library.custom_op("dreamstage::attend_short_after", mutates_args=())
def short_attention_with_cache(
    q: Tensor, k: Tensor, v: Tensor, past_k: Tensor, past_v: Tensor,
    cosine: Tensor | None, sine: Tensor | None, size: int, context: int | None, causal_within_block: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Give the output and all keys and values, those of the past first; there are no gradients."""
    out, all_k, all_v = _rows_like(q), _rows_after(past_k, k), _rows_after(past_v, v)
    _launch_short(
        q, k, v, past_k, past_v, out, all_k, all_v, cosine, sine, size, context, causal_within_block
    )
    return out, all_k, all_v


@short_attention_with_cache.register_fake
def _(q, k, v, past_k, past_v, cosine, sine, size, context, causal_within_block):
    return _rows_like(q), _rows_after(past_k, k), _rows_after(past_v, v)


def _launch_short(
    q: Tensor, k: Tensor, v: Tensor, past_k: Tensor | None, past_v: Tensor | None,
    out: Tensor, all_k: Tensor | None, all_v: Tensor | None,
    cosine: Tensor | None, sine: Tensor | None, size: int, context: int | None, causal_within_block: bool,
) -> None:  # fmt: skip
    if not q.numel():
        return
    keys = k if all_k is None else all_k
    group_size = SHORT // keys.shape[2]
    _launch(
        short_kernel, -(-q.shape[0] * q.shape[1] // group_size),
        q, k, v, past_k, past_v, out, all_k, all_v, *_angles_or(q, cosine, sine),
        *_strides(q, k, v, past_k, past_v, out, all_k, all_v), *_sizes(q, keys, group_size),
        size, context or 0, _scale(q),
        TILE=SHORT, num_warps=short_warps(_padded_head_dim(q), q.element_size()),
        **_constants(q, cosine, context, causal_within_block),
    )  # fmt: skip


@torch.library.custom_op("dreamstage::attend_short_backward", mutates_args=())
def short_attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, cosine: Tensor | None, sine: Tensor | None,
    size: int, context: int | None, causal_within_block: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    grad_q, grad_k, grad_v = (_rows_like(x) for x in (q, k, v))
    if not q.numel():
        return grad_q, grad_k.zero_(), grad_v.zero_()
    grad = _in_rows(grad)
    group_size = SHORT // k.shape[2]
    _launch(
        short_backward_kernel, -(-q.shape[0] * q.shape[1] // group_size),
        q, k, v, grad, grad_q, grad_k, grad_v, *_angles_or(q, cosine, sine),
        *_strides(q, k, v, grad, grad_q, grad_k, grad_v), *_sizes(q, k, group_size),
        size, context or 0, _scale(q), q.shape[3] ** -0.5,
        TILE=SHORT, num_warps=short_warps(_padded_head_dim(q), q.element_size()),
        **_constants(q, cosine, context, causal_within_block),
    )  # fmt: skip
    return grad_q, grad_k, grad_v


@short_attention_backward.register_fake
def _(grad, q, k, v, cosine, sine, size, context, causal_within_block):
    return _rows_like(q), _rows_like(k), _rows_like(v)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    q, k, v, cosine, sine, *ctx.view = inputs
    results = () if isinstance(output, Tensor) else output
    ctx.save_for_backward(q, k, v, *results, cosine, sine)


def _backward(ctx: Any, grad: Tensor, *of_others: Tensor) -> tuple[Tensor | None, ...]:
    operation = flash_attention_backward if of_others else short_attention_backward
    return *operation(grad, *ctx.saved_tensors, *ctx.view), None, None, None, None, None


flash_attention.register_autograd(_backward, setup_context=_setup_context)
short_attention.register_autograd(_backward, setup_context=_setup_context)


def _launch(kernel: Any, programs: int, *arguments: Any, **constants: Any) -> None:
    kernel[(programs,)](*arguments, **constants)


def _rotate(
    x: Tensor, rotated: Tensor, cosine: Tensor | None, sine: Tensor | None, first_position: int
) -> None:
    """Write x, (B, H, S, E), rotated by the angles of places `past` and on."""
    _launch(
        rotate_kernel, _programs(x, x.shape[2], ROTATED_ROWS),
        x, rotated, cosine, sine, *_strides(x), x.shape[1], x.shape[2], first_position,
        HEAD=x.shape[3], WIDTH=_padded_head_dim(x), ROWS=ROTATED_ROWS,
    )  # fmt: skip


def _rotated_shape(q: Tensor, k: Tensor, cosine: Tensor | None) -> tuple[int, ...]:
    """The shape of the rotated keys, of no size where nothing is rotated before."""
    tiles = forward_tiles(_padded_head_dim(q), q.element_size())
    return (0,) if cosine is None or q.shape[2] <= 2 * tiles.rows else tuple(k.shape)


def _in_rows(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _rows_like(x: Tensor) -> Tensor:
    """Fresh (B, H, S, E), in memory (B, S, H, E): heads join without a copy."""
    return x.new_empty(x.shape[0], x.shape[2], x.shape[1], x.shape[3]).transpose(1, 2)


def _rows_after(past: Tensor, x: Tensor) -> Tensor:
    """Fresh (B, H, C + S, E) for C rows and S behind them, laid out as `_rows_like`."""
    batch, heads, rows, head = x.shape
    return x.new_empty(batch, past.shape[2] + rows, heads, head).transpose(1, 2)


def _angles_or(x: Tensor, cosine: Tensor | None, sine: Tensor | None) -> tuple[Tensor, Tensor]:
    """The angles, or x where there are none and nobody looks."""
    return (x, x) if cosine is None or sine is None else (cosine, sine)


def _strides(*tensors: Tensor | None) -> list[int]:
    """Of batch, head and row, one tensor after the other; 0 where there is none."""
    steps = [(0, 0, 0) if x is None else x.stride()[:3] for x in tensors]
    return [step for three in steps for step in three]


def _sizes(q: Tensor, k: Tensor, group_size: int | None = None) -> tuple[int, ...]:
    """Heads, sequences, queries, keys, and how many sequences go together."""
    sequences = q.shape[0] * q.shape[1]
    if group_size is None:
        sections = -(-2 * k.numel() * k.element_size() // CACHE_BYTES)
        # as many in each: a small last one would begin its heaviest tiles when others are done
        group_size = -(-sequences // max(1, sections))
    return q.shape[1], sequences, q.shape[2], k.shape[2], group_size


def _programs(x: Tensor, length: int, tile: int) -> int:
    """How many tiles there are in all sequences."""
    return x.shape[0] * x.shape[1] * -(-length // tile)


def _constants(
    q: Tensor, cosine: Tensor | None, context: int | None, causal_within_block: bool
) -> dict[str, Any]:
    ieee = torch.get_float32_matmul_precision() == "highest"
    return dict(
        HEAD=q.shape[3], WIDTH=_padded_head_dim(q), CAUSAL_WITHIN_BLOCK=causal_within_block,
        WINDOWED=context is not None, ROTATE=cosine is not None, PRECISION="ieee" if ieee else "tf32",
    )  # fmt: skip


def _padded_head_dim(q: Tensor) -> int:
    """Head width as the kernels hold it; a product needs 16 columns."""
    return max(16, _next_power_of_2(q.shape[3]))


def _next_power_of_2(n: int) -> int:
    """The least power of two that holds so many."""
    return 1 << (int(n) - 1).bit_length()


def _scale(q: Tensor) -> float:
    return q.shape[3] ** -0.5 * log2(e)


def _compile_case(
    name: str, kernel: Any, programs: int, tensors: str, strided: str, *, dtype: str = "bf16",
    num_warps: int = 4, num_stages: int = 3, wgmma: bool = True, **constants: Any,
) -> CompileCase:  # fmt: skip
    """A kernel on packed projections, (B, 1024, 3, 9, E), of 16 frames.

    tensors: its arguments before the strides.  strided: those that have some.
    """
    head, arguments = constants["HEAD"], kernel.arg_names
    values = dict(heads=9, sequences=72, group_size=72, queries=1024, keys=1024, size=64, context=0)
    values |= dict(CAUSAL_WITHIN_BLOCK=False, WINDOWED=False, ROTATE=True, PRECISION="tf32")
    strides = {"batch": 1024 * 27 * head, "head": head, "row": 27 * head}
    values |= {f"{x}_{axis}": n for x in strided.split() for axis, n in strides.items()}
    values |= constants | {"WIDTH": _next_power_of_2(head)}
    types = {x: "*fp32" if x in ("logs", "delta") else f"*{dtype}" for x in tensors.split()}
    types |= dict.fromkeys(("cosine", "sine"), "*fp32") if "cosine" in arguments else {}
    types |= {x: "fp32" for x in arguments if x.endswith("scale")}
    values = {x: n for x, n in values.items() if x in arguments}
    return CompileCase(
        f"{name}, {head} wide", kernel, types, values, num_warps, num_stages, programs, wgmma
    )


def _tiled_cases(
    head: int, programs: tuple[int, int, int], note: str = "", dtype: str = "bf16", **view: bool
) -> list[CompileCase]:
    """Forward, and back to keys and to queries, so many programs of each at once."""
    shape = _next_power_of_2(head), 2 if dtype == "bf16" else 4
    more: dict[str, Any] = (
        dict(HEAD=head, dtype=dtype, wgmma=dtype == "bf16", ROTATE_KEYS=False) | view
    )
    forward, keys_programs, queries_programs = programs
    given = "q k v grad logs delta"
    return [
        _compile_case(
            f"attend{note}", forward_kernel, forward, "q k v out logs", "q k v out",
            **forward_tiles(*shape).constants(), **more,
        ),
        _compile_case(
            f"attend{note}, gradient of keys", backward_keys_kernel, keys_programs,
            f"{given} grad_k grad_v", "q k v grad grad_k grad_v",
            **backward_keys_tiles(*shape).constants(), **more,
        ),
        _compile_case(
            f"attend{note}, gradient of queries", backward_queries_kernel, queries_programs,
            f"{given} grad_q", "q k v grad grad_q",
            **backward_queries_tiles(*shape).constants(), **more,
        ),
    ]  # fmt: skip


def _other_cases(head: int, programs: tuple[int, int, int]) -> list[CompileCase]:
    """A frame, whose keys are rotated on the way, and what other tiles need before."""
    one_frame, turn, delta = programs
    return [
        _compile_case(
            "attend, one frame", forward_kernel, one_frame, "q k v out logs", "q k v out",
            HEAD=head, ROTATE_KEYS=True, queries=128, keys=128, size=128,
            **rotating_tiles(_next_power_of_2(head), 2).constants(),
        ),
        _compile_case(
            "attend, turn", rotate_kernel, turn, "x rotated", "stride",
            HEAD=head, ROWS=ROTATED_ROWS, rows=1024, past=0, wgmma=False,
        ),
        _compile_case(
            "attend, delta", delta_kernel, delta, "out grad delta", "out grad",
            HEAD=head, ROWS=ROTATED_ROWS, wgmma=False,
        ),
    ]  # fmt: skip


def _short_cases(
    head: int, programs: tuple[int, int, int], note: str = "", dtype: str = "bf16", **view: bool
) -> list[CompileCase]:
    """Forward, behind a past, and back; each position through time."""
    more: dict[str, Any] = dict(HEAD=head, TILE=SHORT, dtype=dtype, wgmma=dtype == "bf16") | view
    more |= dict(num_warps=short_warps(_next_power_of_2(head), 2 if dtype == "bf16" else 4), size=1)
    clip: dict[str, Any] = dict(queries=16, keys=16, group_size=SHORT // 16)
    absent = ("past_k", "past_v", "all_k", "all_v")
    nothing: dict[str, Any] = dict.fromkeys(absent)
    nothing |= {f"{x}_{axis}": 0 for x in absent for axis in ("batch", "head", "row")}
    forward, after, back = programs
    return [
        _compile_case(
            f"attend_short{note}", short_kernel, forward, "q k v out", "q k v out",
            **more, **clip, **nothing,
        ),
        _compile_case(
            f"attend_short{note}, after a past", short_kernel, after,
            "q k v past_k past_v out all_k all_v", "q k v past_k past_v out all_k all_v",
            queries=1, keys=3, group_size=SHORT // 3, **more,
        ),
        _compile_case(
            f"attend_short{note}, gradient", short_backward_kernel, back,
            "q k v grad grad_q grad_k grad_v", "q k v grad grad_q grad_k grad_v", **more, **clip,
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
    *_short_cases(64, (4, 2, 3)),
    *_short_cases(
        64, (5, 5, 3), ", token by token, no angles", CAUSAL_WITHIN_BLOCK=True, ROTATE=False
    ),
    *_short_cases(64, (2, 1, 1), ", float32", dtype="fp32"),
    *_short_cases(128, (2, 1, 1)),
]
