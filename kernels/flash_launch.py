"""What attention operators share around a launch: layouts, strides, sizes, constants, gradients.

Letters: B batch, H heads, S rows, Q queries, K keys, E head dim.
"""

from __future__ import annotations

from collections.abc import Callable
from math import e, log2
from typing import Any

import torch
from torch import Tensor

from kernels.compile_check import CompileCase

MAX_HEAD_DIM = 128
# keys and values that programs running together read: a part of the L2 cache, 50 MB on an H200
CACHE_BYTES = 20 << 20


def register_gradient(
    operator: Any, backward: Callable[..., tuple[Tensor, Tensor, Tensor]]
) -> None:
    """Let `backward` compute the gradients of q, k and v of an attention operator.

    It is called with the gradient, q, k, v, the results (where there is more than the output), the
    angles, and the arguments of the mask.
    """

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        q, k, v, cosine, sine, *ctx.mask_args = inputs
        results = () if isinstance(output, Tensor) else output
        ctx.save_for_backward(q, k, v, *results, cosine, sine)

    def pull_back(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        return *backward(grad, *ctx.saved_tensors, *ctx.mask_args), None, None, None, None, None

    operator.register_autograd(pull_back, setup_context=setup_context)


def launch(kernel: Any, programs: int, *arguments: Any, **constants: Any) -> None:
    """Launch a Triton kernel on a one-dimensional grid."""
    kernel[(programs,)](*arguments, **constants)


def in_rows(x: Tensor) -> Tensor:
    """Return x with a last axis of stride 1."""
    return x if x.stride(-1) == 1 else x.contiguous()


def rows_like(x: Tensor) -> Tensor:
    """Allocate (B, H, S, E), in memory (B, S, H, E): heads join without a copy."""
    return x.new_empty(x.shape[0], x.shape[2], x.shape[1], x.shape[3]).transpose(1, 2)


def rows_after(past: Tensor, x: Tensor) -> Tensor:
    """Allocate (B, H, C + S, E) for C rows and the S behind them, laid out as by `rows_like`."""
    batch, heads, rows, head = x.shape
    return x.new_empty(batch, past.shape[2] + rows, heads, head).transpose(1, 2)


def angles_or(x: Tensor, cosine: Tensor | None, sine: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the angles, or x as a placeholder where there are none: no kernel reads it then."""
    return (x, x) if cosine is None or sine is None else (cosine, sine)


def strides(*tensors: Tensor | None) -> list[int]:
    """Return strides of batch, head and row, one tensor after the other; 0 where there is none."""
    steps = [(0, 0, 0) if x is None else x.stride()[:3] for x in tensors]
    return [step for three in steps for step in three]


def sizes(q: Tensor, k: Tensor, group_size: int | None = None) -> tuple[int, ...]:
    """Return heads, sequences, queries, keys, and how many sequences run together."""
    sequences = q.shape[0] * q.shape[1]
    if group_size is None:
        sections = -(-2 * k.numel() * k.element_size() // CACHE_BYTES)
        # equal groups: a small last one would start its heaviest tiles when the others are done
        group_size = -(-sequences // max(1, sections))
    return q.shape[1], sequences, q.shape[2], k.shape[2], group_size


def num_tiles(x: Tensor, length: int, tile: int) -> int:
    """Count the tiles of all sequences."""
    return x.shape[0] * x.shape[1] * -(-length // tile)


def constants(
    q: Tensor, cosine: Tensor | None, context: int | None, causal_within_block: bool
) -> dict[str, Any]:
    """Return the compile-time constants that all attention kernels share."""
    ieee = torch.get_float32_matmul_precision() == "highest"
    return dict(
        HEAD=q.shape[3], WIDTH=padded_head_dim(q), CAUSAL_WITHIN_BLOCK=causal_within_block,
        WINDOWED=context is not None, ROTATE=cosine is not None,
        PRECISION="ieee" if ieee else "tf32",
    )  # fmt: skip


def padded_head_dim(q: Tensor) -> int:
    """Return the head dim as the kernels hold it; a matrix product needs 16 columns."""
    return max(16, next_power_of_2(q.shape[3]))


def next_power_of_2(n: int) -> int:
    """Return the least power of two that is no less than n."""
    return 1 << (int(n) - 1).bit_length()


def log2_scale(q: Tensor) -> float:
    """Return 1 / sqrt(E) times log2(e), so that the softmax can use powers of two."""
    return q.shape[3] ** -0.5 * log2(e)


def attention_case(
    name: str, kernel: Any, programs: int, tensors: str, strided: str, *, dtype: str = "bf16",
    num_warps: int = 4, num_stages: int = 3, wgmma: bool = True, **constants: Any,
) -> CompileCase:  # fmt: skip
    """Describe a kernel on packed projections, (B, 1024, 3, 9, E), of 16 frames.

    tensors: its arguments before the strides.  strided: those that have strides.
    """
    head, arguments = constants["HEAD"], kernel.arg_names
    values = dict(heads=9, sequences=72, group_size=72, queries=1024, keys=1024, size=64, context=0)
    values |= dict(CAUSAL_WITHIN_BLOCK=False, WINDOWED=False, ROTATE=True, PRECISION="tf32")
    steps = {"batch": 1024 * 27 * head, "head": head, "row": 27 * head}
    values |= {f"{x}_{axis}": n for x in strided.split() for axis, n in steps.items()}
    values |= constants | {"WIDTH": next_power_of_2(head)}
    types = {x: "*fp32" if x in ("logs", "delta") else f"*{dtype}" for x in tensors.split()}
    types |= dict.fromkeys(("cosine", "sine"), "*fp32") if "cosine" in arguments else {}
    types |= {x: "fp32" for x in arguments if x.endswith("scale")}
    values = {x: n for x, n in values.items() if x in arguments}
    return CompileCase(
        f"{name}, {head} wide", kernel, types, values, num_warps, num_stages, programs, wgmma
    )
