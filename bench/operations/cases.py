"""The cases that kernels are raced on: operations at shapes of the models, and their peers.

Letters: R rows, D width, B clips, H heads, S tokens, E head width, V classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

import kernels
from bench.operations import attention_peers
from bench.races.correctness import Operation
from kernels import BlockMask, eager, reference
from kernels.dispatch import attention_variant

OPERATIONS = (
    "rms_norm", "add_rms_norm", "swiglu", "apply_rope", "attention", "attention_blocks",
    "attention_short", "decode_attention", "linear_cross_entropy", "gru_step", "nearest_code",
)  # fmt: skip
COMPILED, EAGER, LIGER = "torch.compile", "eager PyTorch", "Liger-Kernel"


@dataclass(frozen=True)
class Case:
    """An operation at one shape, and what it is raced against."""

    operation: str
    name: str
    ours: Operation
    definition: Operation
    inputs: list[Tensor]
    odd_inputs: list[Tensor]
    """Inputs of an odd size, for the check alone."""
    eager: Operation | None = None
    """What runs without a kernel, eager and compiled, if not the definition."""
    peers: dict[str, Operation | str] = field(default_factory=dict)
    """Other libraries; a string is the pip package of one that is not installed."""
    bytes_moved: tuple[float, float] | None = None
    """Bytes that forward, and forward and backward, have to move, if memory is the limit."""
    grads: bool = True
    memory: bool = False
    """Whether peak memory is measured as well."""
    fused: bool = False
    """A peer computes gradients in its forward pass, and synchronizes with the GPU: only both
    passes are raced, without CUDA graphs."""


def cases(device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    """Yield every case: the shapes of a 150M model on a GPU, small ones on a CPU."""
    on_gpu = device.type == "cuda"
    make = partial(_randn, device=device, dtype=dtype)
    yield from _pointwise(make, 65_536 if on_gpu else 2048)
    yield from _attentions(make, on_gpu)
    yield _attention_with_cache(make, on_gpu)
    yield _decode_attention(make, on_gpu)
    yield _cross_entropy(make, *((16_384, 576, 8192) if on_gpu else (512, 128, 1024)))
    yield _gru_step(make, *((16_384, 1024) if on_gpu else (256, 256)))


def _randn(*shape: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, device=device).to(dtype)


def _pointwise(make: Callable[..., Tensor], rows: int) -> Iterator[Case]:
    width, hidden = 576, 1536
    size = make(1).element_size()
    weight, odd_weight = make(width), make(100)
    once = rows * width * size
    rms_peer = _liger("rms_norm", lambda f: lambda x, w: f(x, w, 1e-6, in_place=False))
    yield Case(
        "rms_norm", f"rms_norm {rows} x {width}", kernels.rms_norm, reference.rms_norm,
        [make(rows, width), weight], [make(37, 100), odd_weight],
        peers=rms_peer, bytes_moved=(2 * once, 5 * once),
    )  # fmt: skip
    yield Case(
        "add_rms_norm", f"add_rms_norm {rows} x {width}", kernels.add_rms_norm,
        reference.add_rms_norm, [make(rows, width), make(rows, width), weight],
        [make(37, 100), make(37, 100), odd_weight], bytes_moved=(4 * once, 8 * once),
    )  # fmt: skip
    wide = rows // 2 * hidden * size
    yield Case(
        "swiglu", f"swiglu {rows // 2} x {hidden}", kernels.swiglu, reference.swiglu,
        [make(rows // 2, 2 * hidden)], [make(37, 2 * 99)],
        peers=_liger_swiglu(), bytes_moved=(3 * wide, 8 * wide),
    )  # fmt: skip
    clips, heads, tokens, head = max(1, rows // 1024), 9, 1024 if rows > 4096 else 256, 64
    cosine, sine = _angles(tokens, head, weight.device)

    def rotate_qk(rotate: Callable[..., Tensor], q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        first, second = cosine[: q.shape[-2]], sine[: q.shape[-2]]
        return rotate(q, first, second), rotate(k, first, second)

    both = torch.cat([cosine, cosine], -1)[None], torch.cat([sine, sine], -1)[None]
    once = clips * heads * tokens * head * size
    yield Case(
        "apply_rope", f"apply_rope to q, k of {clips} x {heads} x {tokens} x {head}",
        partial(rotate_qk, kernels.apply_rope), partial(rotate_qk, reference.apply_rope),
        [make(clips, heads, tokens, head) for _ in range(2)],
        [make(1, 3, 37, head) for _ in range(2)],
        peers=_liger("rope", lambda f: lambda q, k: f(q, k, *(a[:, : q.shape[2]] for a in both))),
        bytes_moved=(4 * once, 8 * once),
    )  # fmt: skip


def _angles(tokens: int, head: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return cosine and sine, (S, E / 2)."""
    frequencies = torch.rand(head // 2, device=device)
    angle = torch.arange(tokens, device=device)[:, None] * frequencies
    return angle.cos(), angle.sin()


def _attention_with_cache(make: Callable[..., Tensor], on_gpu: bool) -> Case:
    """Return a step of a small model's rollout, whose cache the attention extends."""
    batch, heads, head, block_mask = 300 if on_gpu else 32, 16, 12, BlockMask(1, 3)
    angles = _angles(3, head, make(1).device)

    @torch.no_grad()
    def call(operation: Callable[..., tuple], q, k, v, past_k, past_v):
        return operation(q, k, v, (past_k, past_v), block_mask, angles)

    def shape(rows: int, batch: int = batch) -> tuple[int, ...]:
        return batch, heads, rows, head

    return Case(
        "attention_short", f"attention with a cache of 2, {batch} x {heads} x 1 x {head}",
        partial(call, kernels.attention_with_cache), partial(call, reference.attention_with_cache),
        [make(*shape(rows)) for rows in (1, 1, 1, 2, 2)],
        [make(*shape(rows, 3)) for rows in (1, 1, 1, 2, 2)],
        eager=partial(call, eager.attention_with_cache), grads=False,
    )  # fmt: skip


def _attentions(make: Callable[..., Tensor], on_gpu: bool) -> Iterator[Case]:
    """Yield attention as in the models, which rotate queries and keys; once without angles, as
    attention is published."""
    clips, heads, head = (16, 9, 64) if on_gpu else (2, 4, 32)
    long = 1024 if on_gpu else 128
    # name, mask, sequences of a clip, tokens of one, whether they are rotated
    shapes = [
        ("causal, no angles", BlockMask(), 1, long, False),
        ("causal", BlockMask(), 1, long, True),
        ("block-causal", BlockMask(64), 1, long, True),
        ("3 frames of context", BlockMask(64, context_blocks=3), 1, max(long, 256), True),
        ("within a frame", BlockMask(64, context_blocks=1), 1, long, True),
        ("over space", BlockMask(16), 64, 16, True),
        ("over space", BlockMask(256), 4, 256, True),
        ("through time", BlockMask(), 64, 4, True),
        ("through time", BlockMask(), 64, 16, True),
        ("through time", BlockMask(), 16, 64, True),
    ]
    for name, block_mask, sequences, tokens, rotated in shapes:
        shape = clips * sequences, heads, tokens, head
        odd = 1, 3, 3 * block_mask.block_size, head
        device = make(1).device
        angles = _angles(max(tokens, odd[2]), head, device) if rotated else None
        call = _masked_attention(block_mask, angles)
        yield Case(
            attention_variant(block_mask, tokens),
            f"attention, {name}, {' x '.join(str(side) for side in shape)}",
            partial(call, kernels.attention), partial(call, reference.attention),
            [make(*shape) for _ in range(3)], [make(*odd) for _ in range(3)],
            eager=partial(call, eager.attention),
            peers=attention_peers.peers(block_mask, tokens, device, angles),
        )  # fmt: skip


def _masked_attention(
    block_mask: BlockMask, angles: attention_peers.Angles
) -> Callable[..., Tensor]:
    """Return attention under a mask, at the first positions of the angles."""

    def call(attention: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        few = None if angles is None else tuple(a[: k.shape[2]] for a in angles)
        return attention(q, k, v, block_mask, few)

    return call


def _decode_attention(make: Callable[..., Tensor], on_gpu: bool) -> Case:
    heads, rows, head = (9, 1024, 64) if on_gpu else (4, 256, 32)
    device = make(1).device
    bounds = torch.tensor([rows // 16, rows * 3 // 4], dtype=torch.int32, device=device)
    low, high = bounds.tolist()
    ours = partial(_with_bounds, kernels.decode_attention, bounds)
    return Case(
        "decode_attention",
        f"decode_attention, 1 x {heads} x {rows} x {head}, {high - low} rows in bounds",
        ours, partial(_with_bounds, reference.decode_attention, bounds),
        [make(1, heads, 1, head), make(1, heads, rows, head), make(1, heads, rows, head)],
        [make(2, 3, 5, head), make(2, 3, rows, head), make(2, 3, rows, head)],
        eager=partial(_with_bounds, eager.decode_attention, bounds),
        peers={
            "SDPA on a slice of known length": lambda q, k, v: scaled_dot_product_attention(
                q, k[:, :, low:high], v[:, :, low:high]
            )
        },
        grads=False,
    )  # fmt: skip


def _with_bounds(operation: Callable[..., Tensor], bounds: Tensor, *inputs: Tensor) -> Tensor:
    return operation(*inputs, bounds)


def _cross_entropy(make: Callable[..., Tensor], rows: int, width: int, classes: int) -> Case:
    target = torch.randint(classes, (rows,), device=make(1).device)

    def mean(operation: Callable[..., tuple[Tensor, Tensor]], x: Tensor, weight: Tensor) -> Tensor:
        return operation(x, weight, target[: len(x)] % len(weight))[0].mean()

    return Case(
        "linear_cross_entropy", f"linear_cross_entropy {rows} x {width}, {classes} classes",
        partial(mean, kernels.linear_cross_entropy), partial(mean, reference.linear_cross_entropy),
        [make(rows, width), 0.05 * make(classes, width)], [make(37, 100), 0.05 * make(129, 100)],
        peers=_liger(
            "fused_linear_cross_entropy", lambda f: lambda x, w: f(x, w, target[: len(x)] % len(w))
        ),
        memory=True, fused=True,
    )  # fmt: skip


def _gru_step(make: Callable[..., Tensor], rows: int, width: int) -> Case:
    once = rows * width * make(1).element_size()
    return Case(
        "gru_step", f"gru_step {rows} x {width}, normed", kernels.gru_step, reference.gru_step,
        [make(rows, 3 * width), make(rows, width), make(3 * width), make(3 * width)],
        [make(37, 3 * 100), make(37, 100), make(300), make(300)],
        bytes_moved=(5 * once, 14 * once),
    )  # fmt: skip


def _liger(name: str, wrap: Callable[[Callable[..., Tensor]], Operation]) -> dict:
    try:
        from liger_kernel.transformers import functional  # pyright: ignore[reportMissingImports]
    except ImportError:
        return {LIGER: "liger-kernel"}
    return {LIGER: wrap(getattr(functional, f"liger_{name}"))}


def _liger_swiglu() -> dict:
    try:
        from liger_kernel.ops import swiglu  # pyright: ignore[reportMissingImports]
    except ImportError:
        return {LIGER: "liger-kernel"}
    # its function of one tensor, which avoids copies of the halves
    return {LIGER: swiglu.LigerFusedGateUpSiLUMulFunction.apply}
