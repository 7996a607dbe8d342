"""Attention as PyTorch has it: its best backend of SDPA, and FlexAttention with a block mask."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

from bench.races.correctness import Operation
from bench.races.pairs import time_call
from kernels import BlockMask
from kernels.reference import apply_rope

SDPA = "PyTorch SDPA, best backend"
FLEX = "FlexAttention, compiled"
BACKENDS = (
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
)
FLEX_BLOCK = 128  # tokens of a block, which FlexAttention skips where it is masked
Angles = tuple[Tensor, Tensor] | None


def peers(
    block_mask: BlockMask, tokens: int, device: torch.device, angles: Angles
) -> dict[str, Operation | str]:
    """Return SDPA, and FlexAttention where it has gradients, on a GPU, and blocks to skip.

    angles: (S, E / 2) each, or more rows, that rotate queries and keys first, in plain PyTorch.
    """
    found: dict[str, Operation | str] = {SDPA: BestSdpa(block_mask, angles)}
    if device.type == "cuda" and tokens > FLEX_BLOCK:
        found[FLEX] = Flex(block_mask, angles)
    return found


def rotate_qk(q: Tensor, k: Tensor, angles: Angles) -> tuple[Tensor, Tensor]:
    """Rotate queries and keys, if there are angles."""
    if angles is None:
        return q, k
    cosine, sine = (a[: q.shape[2]] for a in angles)
    return apply_rope(q, cosine, sine), apply_rope(k, cosine, sine)


class BestSdpa:
    """SDPA by the backend that is the fastest at a shape, forward and backward."""

    def __init__(self, block_mask: BlockMask, angles: Angles) -> None:
        self.block_mask, self.angles = block_mask, angles
        self.backends: dict[torch.Size, SDPBackend | None] = {}
        self.masks: dict[torch.Size, Tensor | None] = {}

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k = rotate_qk(q, k, self.angles)
        shape = q.shape
        if shape not in self.backends:
            causal = self.block_mask.block_size == 1 and self.block_mask.context_blocks is None
            tokens = shape[-2]
            self.masks[shape] = None if causal else self.block_mask.mask(tokens, tokens, q.device)
            self.backends[shape] = self._fastest(q, k, v) if q.is_cuda else None
        backend = self.backends[shape]
        if backend is None:
            return self._attend(q, k, v)
        with sdpa_kernel(backend):
            return self._attend(q, k, v)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        block_mask = self.block_mask
        size = block_mask.block_size
        if size > 1 and (block_mask.context_blocks == 1 or size == q.shape[2]):
            # frames that see nothing else are sequences of their own, and need no mask
            query, key, value = (x.unflatten(2, (-1, size)).flatten(1, 2) for x in (q, k, v))
            out = scaled_dot_product_attention(
                query, key, value, is_causal=block_mask.causal_within_block
            )
            return out.unflatten(1, (q.shape[1], -1)).flatten(2, 3)
        mask = self.masks[q.shape]
        return scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)

    def _fastest(self, q: Tensor, k: Tensor, v: Tensor) -> SDPBackend:
        inputs = [x.detach().clone().requires_grad_() for x in (q, k, v)]

        def step() -> None:
            with torch.enable_grad():
                y = self._attend(*inputs)
                torch.autograd.grad(y, inputs, torch.ones_like(y))

        seconds = {}
        for backend in BACKENDS:
            try:
                with sdpa_kernel(backend):
                    time_call(step, q.device, repeats=3)
                    seconds[backend] = time_call(step, q.device, repeats=10)
            except RuntimeError:  # it does not support this mask, dtype or GPU
                continue
        return min(seconds, key=lambda backend: seconds[backend])


class Flex:
    """Compiled FlexAttention under a block mask; masked blocks are skipped."""

    def __init__(self, block_mask: BlockMask, angles: Angles) -> None:
        self.block_mask, self.angles = block_mask, angles
        self.masks: dict[int, Any] = {}

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        tokens = q.shape[-2]
        if tokens not in self.masks:
            self.masks[tokens] = create_block_mask(
                mask_mod_of(self.block_mask), None, None, tokens, tokens, device=str(q.device)
            )
        return compiled_flex()(q, k, v, self.masks[tokens], self.angles)


def mask_mod_of(block_mask: BlockMask) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Return the mask as FlexAttention takes it, a function of positions (it takes no method)."""

    def mask_mod(clip: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        behind = query // block_mask.block_size - key // block_mask.block_size
        visible = behind >= 0
        if block_mask.context_blocks is not None:
            visible = visible & (behind < block_mask.context_blocks)
        return visible & (query >= key) if block_mask.causal_within_block else visible

    return mask_mod


@cache
def compiled_flex() -> Any:
    """Compile one function for all masks; it also rotates queries and keys."""

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Any, angles: Angles) -> Any:
        return flex_attention(*rotate_qk(q, k, angles), v, block_mask=mask)

    return torch.compile(attend, dynamic=False)
