"""MaskGIT dynamics without a cache, in plain PyTorch: all frames of the context pass through the
ST-transformer again in every pass over a frame.

Letters: B clips, T frames, N codes of a frame, S tokens of it, H heads, E head width, D width, A
action numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention, silu

from kernels.reference import apply_rope
from models.dynamics.maskgit import MaskGit
from models.layers.space_time import Angles, Attention, SpaceTimeTransformer

EPS = 1e-6


class PlainSpaceTime(nn.Module):
    """As SpaceTimeTransformer over a whole context, by its weights."""

    def __init__(self, weights: SpaceTimeTransformer) -> None:
        super().__init__()
        self.weights = weights

    def forward(self, x: Tensor, cache: None = None) -> tuple[Tensor, None]:
        """(B, T, S, D) -> (B, T, S, D), and no cache."""
        over_space, over_time = self.weights.space_rotary(1), self.weights.time_rotary(x.shape[1])
        block: Any
        for block in self.weights.blocks:
            x = x + attend(block.over_space, x, over_space, is_causal=False)
            by_place = attend(block.over_time, x.transpose(1, 2), over_time, is_causal=True)
            x = x + by_place.transpose(1, 2)
            normed = rms_norm(x, x.shape[-1:], block.mlp_norm.weight, EPS)
            gate, up = linear(normed, block.gate_up.weight).chunk(2, -1)
            x = x + linear(silu(gate) * up, block.down.weight)
        return rms_norm(x, x.shape[-1:], self.weights.norm.weight, EPS), None


def attend(weights: Attention, x: Tensor, angles: Angles, is_causal: bool) -> Tensor:
    """Attention along the last axis but one, before it is added: (B, R, L, D) -> (B, R, L, D)."""
    normed = rms_norm(x, x.shape[-1:], weights.norm.weight, EPS)
    qkv = linear(normed, weights.qkv.weight).flatten(0, 1)
    q, k, v = qkv.unflatten(-1, (3, weights.num_heads, -1)).permute(2, 0, 3, 1, 4)
    for_heads: Any = (weights.query_norm, weights.key_norm)
    q, k = (
        apply_rope(rms_norm(y, y.shape[-1:], norm.weight.to(y.dtype), EPS), *angles)
        for y, norm in zip((q, k), for_heads, strict=True)
    )
    attended = scaled_dot_product_attention(q, k, v, is_causal=is_causal)
    return linear(attended.transpose(1, 2).flatten(2), weights.out.weight).view_as(x)


@dataclass
class Frames:
    """What a frame is predicted from, in place of keys and values: codes, those of the frame before
    (B, T, N), actions (B, T, A), and whether these are known (B, T)."""

    latents: Tensor
    before: Tensor
    actions: Tensor
    known: Tensor

    def between(self, start: int | None, stop: int | None = None) -> Frames:
        """Keep the frames of a slice."""
        return Frames(*(x[:, start:stop] for x in self.fields))

    def followed_by(self, other: Frames) -> Frames:
        pairs = zip(self.fields, other.fields, strict=True)
        return Frames(*(torch.cat(pair, 1) for pair in pairs))

    @property
    def fields(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.latents, self.before, self.actions, self.known


class PlainMaskGit(MaskGit):
    """Remembers frames, and reads all of them in each pass."""

    def __init__(self, ours: MaskGit) -> None:
        """ours: whose weights are copied."""
        super().__init__(ours.config, ours.latents, ours.actions)
        self.load_state_dict(ours.state_dict())
        self.transformer = PlainSpaceTime(self.transformer)  # type: ignore[assignment]
        self.read: Callable[..., Tensor] = self._read

    def compile_passes(self, mode: str) -> None:
        """Compile a pass, embeddings included."""
        self.read = torch.compile(self._read, dynamic=False, mode=mode)

    def _blocks(  # type: ignore[override]
        self,
        latents: Tensor,
        actions: Tensor,
        known: Tensor,
        cache: Frames | None = None,
        before: Tensor | None = None,
    ) -> tuple[Tensor, Frames]:
        new = Frames(latents, latents if before is None else before, actions, known)
        frames = new if cache is None else cache.followed_by(new)
        return self.read(*frames.fields)[:, -latents.shape[1] :], frames

    def _read(self, latents: Tensor, before: Tensor, actions: Tensor, known: Tensor) -> Tensor:
        return super()._blocks(latents, actions, known, None, before)[0]
