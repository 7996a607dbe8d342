"""A vision transformer whose tokens may be any of a frame's patches (ViT, arXiv:2010.11929).

Letters: B frames, H W pixels, P patches, N tokens, D width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import gelu, linear, scaled_dot_product_attention

from data.ranges import CheckedConfig, Range


@dataclass(frozen=True)
class VitConfig(CheckedConfig):
    dim: Annotated[int, Range(4, 2**14)] = 768
    """Width of the tokens, a multiple of 4."""
    num_layers: Annotated[int, Range(1, 512)] = 12
    """Layers."""
    num_heads: Annotated[int, Range(1, 512)] = 12
    """Attention heads of a layer."""
    mlp_ratio: Annotated[float, Range(above=0, high=64)] = 4.0
    """Width inside the feed-forward, as a multiple of `dim`."""

    def check(self) -> None:
        super().check()
        if self.dim % self.num_heads or self.dim % 4:
            raise ValueError(
                f"--dim {self.dim} is not divisible by 4 and by --num-heads {self.num_heads}; "
                f"change one of them"
            )


class VitLayer(nn.TransformerEncoderLayer):
    """PyTorch's pre-norm layer without its copies of queries, keys and values, which take a tenth
    of a training step on a CPU: (B, N, D) -> (B, N, D)."""

    is_fsdp_unit = True

    def __init__(self, config: VitConfig) -> None:
        super().__init__(
            config.dim,
            config.num_heads,
            round(config.dim * config.mlp_ratio),
            dropout=0.0,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )

    def forward(self, src: Tensor) -> Tensor:  # type: ignore[override]
        x = src + self._attend(self.norm1(src))
        return x + self.linear2(gelu(self.linear1(self.norm2(x))))

    def _attend(self, normed: Tensor) -> Tensor:
        attention = self.self_attn
        qkv = linear(normed, attention.in_proj_weight, attention.in_proj_bias)
        q, k, v = rearrange(qkv, "B N (three H E) -> three B H N E", three=3, H=attention.num_heads)
        if normed.is_cpu and torch.is_grad_enabled():
            # of few tokens; the gradient of PyTorch's fused attention takes several times as long
            scores = (q * q.shape[-1] ** -0.5) @ k.transpose(2, 3)
            attended = scores.float().softmax(-1).to(v.dtype) @ v
        else:
            attended = scaled_dot_product_attention(q, k, v)
        return attention.out_proj(rearrange(attended, "B H N E -> B N (H E)"))


class VitLayers(nn.Module):
    """Pre-norm layers over tokens in no order, and a norm at the end: (B, N, D) -> (B, N, D)."""

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(VitLayer(config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(config.dim)

    def forward(self, tokens: Tensor) -> Tensor:
        for layer in self.layers:
            tokens = layer(tokens)
        return self.norm(tokens)


class PatchEncoder(nn.Module):
    """Frames to a vector per patch, of all patches or of those that are given."""

    positions: Tensor
    position_emb: Tensor

    def __init__(self, config: VitConfig, image_size: tuple[int, int], patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.patch_emb = nn.Conv2d(3, config.dim, patch_size, patch_size)
        rows, columns = (side // patch_size for side in image_size)
        positions = patch_positions(rows, columns)
        self.register_buffer("positions", positions, persistent=False)
        embedded = embed_positions(positions, config.dim, max(rows, columns))
        self.register_buffer("position_emb", embedded, persistent=False)
        self.layers = VitLayers(config)

    def forward(self, frames: Tensor, keep: Tensor | None = None) -> Tensor:
        """(B, 3, H, W) about zero, (B, N) patches to look at -> (B, N, D); None looks at all."""
        patches = rearrange(
            frames, "B C (h p) (w q) -> B (h w) (C p q)", p=self.patch_size, q=self.patch_size
        )
        positions = self.position_emb.expand(len(frames), -1, -1)
        if keep is not None:
            patches, positions = take(patches, keep), take(positions, keep)
        # what the convolution computes, of the patches that are looked at
        tokens = linear(patches, self.patch_emb.weight.flatten(1), self.patch_emb.bias)
        return self.layers(tokens + positions)


def patch_positions(rows: int, columns: int) -> Tensor:
    """x and y of the middles of patches, from -1 to 1 across the frame: (P, 2)."""
    y, x = ((torch.arange(count) + 0.5) / count * 2 - 1 for count in (rows, columns))
    return torch.stack([x.repeat(rows), y.repeat_interleave(columns)], 1)


def embed_positions(positions: Tensor, dim: int, grid: int) -> Tensor:
    """Sines and cosines of positions anywhere: (..., 2) -> (..., dim).

    Wavelengths go from two patches of a grid of `grid` a side to four times the frame
    (arXiv:1706.03762, in two dimensions as in MAE, arXiv:2111.06377).
    """
    count = dim // 4
    shortest, longest = 4 / grid, 8.0  # a frame spans 2
    ratio = torch.linspace(0, 1, count, device=positions.device)
    frequency = 2 * math.pi / (shortest * (longest / shortest) ** ratio)
    angles = positions[..., None] * frequency  # (..., 2, dim / 4)
    return torch.cat([angles.sin(), angles.cos()], -1).flatten(-2)


def take(tokens: Tensor, index: Tensor) -> Tensor:
    """Take tokens by number: (B, P, D), (B, N) -> (B, N, D)."""
    return tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[-1]))
