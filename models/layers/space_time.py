"""ST-transformer (Xu et al., arXiv:2001.02908; as in Genie, arXiv:2402.15391): attention within a
frame, then through time at each place, and one feed-forward after both.

Letters: B clips, T frames, S tokens of a frame, C context frames, W windows, H heads, E head width,
D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kernels import BlockMask, attention, attention_with_cache, swiglu
from models.layers.transformer import RmsNorm, Rotary, TransformerConfig, add_norm

Angles = tuple[Tensor, Tensor]
KeysAndValues = tuple[Tensor, Tensor]


@dataclass
class FrameCache:
    """Keys and values through time of finished frames, per layer: (B, S, H, T, E), oldest first.

    Keys are kept before their rotation: attention depends on differences of times only.
    """

    keys: list[Tensor]
    values: list[Tensor]

    def select(self, index: Tensor) -> FrameCache:
        return FrameCache([k[index] for k in self.keys], [v[index] for v in self.values])

    def between(self, start: int | None, stop: int | None = None) -> FrameCache:
        """Keep the frames of a slice."""
        part = slice(start, stop)
        return FrameCache(
            [k[:, :, :, part] for k in self.keys], [v[:, :, :, part] for v in self.values]
        )

    def windows(self, frames: int) -> FrameCache:
        """Every window of so many consecutive frames as a row of its own: (B W, S, H, T, E)."""

        def unfold(x: Tensor) -> Tensor:
            return rearrange(x.unfold(3, frames, 1), "B S H W E T -> (B W) S H T E")

        return FrameCache([unfold(k) for k in self.keys], [unfold(v) for v in self.values])


class Attention(nn.Module):
    """Pre-norm attention with packed projections; queries and keys are normalized by head."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.num_heads, dim = config.num_heads, config.dim
        self.norm = RmsNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        head_dim = dim // config.num_heads
        self.query_norm = RmsNorm(head_dim) if config.qk_norm else nn.Identity()
        self.key_norm = RmsNorm(head_dim) if config.qk_norm else nn.Identity()
        self.out = nn.Linear(dim, dim, bias=False)

    def forward(
        self, normed: Tensor, angles: Angles, mask: BlockMask, past: KeysAndValues | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """normed: (R, L, D), R sequences of L tokens that follow `past`.

        Returns the branch, (R, L, D), and the keys and values of past and these.
        """
        q, k, v = rearrange(
            self.qkv(normed), "R L (three H E) -> three R H L E", three=3, H=self.num_heads
        )
        q, k = self.query_norm(q), self.key_norm(k)
        if past is None:
            attended = attention(q, k, v, mask, angles)
        else:
            attended, k, v = attention_with_cache(q, k, v, past, mask, angles)
        return self.out(rearrange(attended, "R H L E -> R L (H E)")), k, v


class SpaceTimeBlock(nn.Module):
    """Attention within each frame, then through time at each place, then SwiGLU."""

    is_fsdp_unit = True

    def __init__(self, config: TransformerConfig, over_space: bool = True) -> None:
        """over_space: tokens of one frame see each other."""
        super().__init__()
        self.context_frames = config.context_frames
        self.over_space = Attention(config) if over_space else None
        self.over_time = Attention(config) if config.context_frames > 1 else None
        self.mlp_norm = RmsNorm(config.dim)
        self.gate_up = nn.Linear(config.dim, 2 * config.mlp_dim, bias=False)
        self.down = nn.Linear(config.mlp_dim, config.dim, bias=False)
        self.dropout = nn.Dropout(config.dropout)
        last = [self.down, *(a.out for a in (self.over_space, self.over_time) if a is not None)]
        for module in last:
            nn.init.normal_(module.weight, std=0.02 / (2 * config.num_layers) ** 0.5)

    def forward(
        self,
        x: Tensor,
        residual: Tensor | None,
        space_angles: Angles,
        time_angles: Angles,
        past: KeysAndValues | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x: (B, T, S, D), frames after `past`; residual: the branch not added to it yet.

        Returns both after the block, and keys and values through time: (B, S, H, T, E) of past
        and x, of no frame where there is no context.
        """
        batch, _, tokens, _ = x.shape
        k = v = x.new_zeros(batch, tokens, 1, 0, 1)
        if self.over_space is not None:
            x, normed = add_norm(x, residual, self.over_space.norm, multiplied=True)
            branch, _, _ = self.over_space(
                rearrange(normed, "B T S D -> (B T) S D"), space_angles, BlockMask(tokens)
            )
            residual = self.dropout(rearrange(branch, "(B T) S D -> B T S D", B=batch))
        if self.over_time is not None:
            x, normed = add_norm(x, residual, self.over_time.norm, multiplied=True)
            branch, k, v = self.over_time(
                rearrange(normed, "B T S D -> (B S) T D"),
                time_angles,
                BlockMask(context_blocks=self.context_frames),
                None if past is None else (past[0].flatten(0, 1), past[1].flatten(0, 1)),
            )
            residual = self.dropout(rearrange(branch, "(B S) T D -> B T S D", B=batch))
            k, v = (y.unflatten(0, (batch, tokens)) for y in (k, v))
        x, normed = add_norm(x, residual, self.mlp_norm, multiplied=True)
        return x, self.dropout(self.down(swiglu(self.gate_up(normed)))), k, v


class SpaceTimeTransformer(nn.Module):
    """Blocks over clips of frames, with a cache of the frames that are finished."""

    def __init__(
        self, config: TransformerConfig, positions: Tensor, over_space: bool = True
    ) -> None:
        """positions: (S, 2), row and column of a frame's tokens."""
        super().__init__()
        self.config = config
        head_dim = config.dim // config.num_heads
        self.space_rotary = Rotary(head_dim, positions, 1)
        self.time_rotary = Rotary(head_dim, torch.zeros(1, 2), config.context_frames)
        self.blocks = nn.ModuleList(
            SpaceTimeBlock(config, over_space) for _ in range(config.num_layers)
        )
        self.norm = RmsNorm(config.dim)

    @property
    def temporal_context(self) -> int:
        """Frames that the output at one depends on, itself included."""
        return 1 + self.config.num_layers * (self.config.context_frames - 1)

    def forward(self, x: Tensor, cache: FrameCache | None = None) -> tuple[Tensor, FrameCache]:
        """x: (B, T, S, D), frames that follow those of the cache -> (B, T, S, D), and the cache
        with them.  Frame t sees itself and the C - 1 frames before it, in each block."""
        space_angles = self.space_rotary(1)
        frames = x.shape[1] + (cache.keys[0].shape[3] if cache else 0)
        time_angles = self.time_rotary(frames)
        checkpoints = (
            self.config.activation_checkpointing and self.training and torch.is_grad_enabled()
        )
        keys, values = [], []
        residual = None
        for index, block in enumerate(self.blocks):
            past = (cache.keys[index], cache.values[index]) if cache else None
            inputs = (x, residual, space_angles, time_angles, past)
            if checkpoints:
                x, residual, k, v = checkpoint(  # type: ignore[misc]
                    block, *inputs, use_reentrant=False, preserve_rng_state=self.config.dropout > 0
                )
            else:
                x, residual, k, v = block(*inputs)
            keys.append(k)
            values.append(v)
        return add_norm(x, residual, self.norm)[1], FrameCache(keys, values)


def grid_positions(grid: tuple[int, int], extra: int = 0) -> Tensor:
    """Rows and columns of a grid's tokens, after `extra` tokens at its center: (S, 2)."""
    rows, columns = grid
    positions = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).float()
    center = positions.mean(0, keepdim=True)
    return torch.cat([center.expand(extra, 2), positions])
