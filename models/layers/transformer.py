"""A Llama-style decoder over blocks: one block holds the tokens of one frame and of one action.

Letters: B clips, T blocks, S tokens of a block, C context blocks, H heads, E head width, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.utils.checkpoint import checkpoint

from data.ranges import CheckedConfig, Range
from kernels import (
    BlockMask,
    add_rms_norm,
    apply_rope,
    attention,
    attention_with_cache,
    decode_attention,
    rms_norm,
    swiglu,
)

if TYPE_CHECKING:
    from models.method import CompileFn


MAX_PARAMETERS = 10**10  # 40 GB in float32, and four times that in training


@dataclass(frozen=True)
class TransformerConfig(CheckedConfig):
    dim: Annotated[int, Range(1, 2**14)] = 192
    """Width of the residual stream."""
    num_layers: Annotated[int, Range(1, 512)] = 6
    """Layers."""
    num_heads: Annotated[int, Range(1, 512)] = 6
    """Attention heads of a layer."""
    mlp_dim: Annotated[int, Range(1, 2**16)] = 512
    """Width inside the SwiGLU feed-forward."""
    context_frames: Annotated[int, Range(1, 4096)] = 4
    """Frames that a frame attends to, itself included."""
    qk_norm: bool = True
    """Normalize queries and keys of each head."""
    dropout: Annotated[float, Range(0, below=1)] = 0.0
    """Dropout on the output of attention and of the feed-forward."""
    activation_checkpointing: bool = False
    """Compute a layer's activations again in the backward pass: less memory, a third more time."""

    def check(self) -> None:
        super().check()
        if self.dim % self.num_heads or (self.dim // self.num_heads) % 2:
            raise ValueError(
                f"--dim {self.dim} is not divisible by {self.num_heads} heads of even width; "
                f"change it or --num-heads"
            )
        parameters = self.num_layers * self.dim * (4 * self.dim + 3 * self.mlp_dim)
        if parameters > MAX_PARAMETERS:
            raise ValueError(
                f"--num-layers {self.num_layers} of --dim {self.dim} and --mlp-dim {self.mlp_dim} "
                f"are {parameters:.1e} parameters; at most {MAX_PARAMETERS:.0e} can be held"
            )


@dataclass
class Cache:
    """Keys and values of the context blocks, per layer: (B, H, C * S, E) each, oldest first.

    Keys are kept before their rotation.  Positions count from the oldest context block, so the
    context can slide without end and no angle loses digits.
    """

    keys: list[Tensor]
    values: list[Tensor]

    def select(self, index: Tensor) -> Cache:
        return Cache([k[index] for k in self.keys], [v[index] for v in self.values])


@dataclass
class StaticCache:
    """A block that is written token by token, behind the context blocks.

    The layout is static: the block has the last S rows, however many blocks are before it.
    """

    rotated: list[Tensor]
    """Keys of each layer, rotated to their positions: (B, H, C * S, E)."""
    values: list[Tensor]
    cache: Cache
    bounds: Tensor
    """(S, 2) int32: first and last-plus-one row that the token at each position attends to."""


class RmsNorm(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight)


class Rotary(nn.Module):
    """Rotary angles for tokens at (time, row, column); each axis rotates some of the pairs.

    Attention depends on differences of positions only, so an old frame can leave the context.
    """

    positions: Tensor
    cosine: Tensor
    sine: Tensor

    def __init__(self, head_dim: int, positions: Tensor, num_frames: int) -> None:
        """positions: (S, 2), row and column of a block's tokens; num_frames: of the context."""
        super().__init__()
        pairs = head_dim // 2
        time = max(1, pairs // 4)
        rows = (pairs - time) // 2
        columns = pairs - time - rows
        self.register_buffer("positions", positions.float(), persistent=False)
        self.pair_counts = (time, rows, columns)
        # computed once: a CUDA graph reads them at the address where it was captured
        cosine, sine = self._angles(num_frames)
        self.register_buffer("cosine", cosine, persistent=False)
        self.register_buffer("sine", sine, persistent=False)

    def forward(self, num_frames: int) -> tuple[Tensor, Tensor]:
        """Cosine and sine, (num_frames * S, E / 2) each; the first frame is at time 0."""
        rows = num_frames * len(self.positions)
        if rows > len(self.cosine):  # a clip that is longer than the context
            return self._angles(num_frames)
        return self.cosine[:rows], self.sine[:rows]

    def _angles(self, num_frames: int) -> tuple[Tensor, Tensor]:
        size = len(self.positions)
        axes = (
            torch.arange(num_frames, device=self.positions.device).float().repeat_interleave(size),
            self.positions[:, 0].repeat(num_frames),
            self.positions[:, 1].repeat(num_frames),
        )
        angles = torch.cat(
            [
                # wavelengths from 2 pi to about 100 positions, the span of a block or a context
                axis[:, None] * 16.0 ** -torch.linspace(0, 1, count, device=axis.device)
                for axis, count in zip(axes, self.pair_counts, strict=True)
                if count
            ],
            dim=-1,
        )
        return angles.cos(), angles.sin()


class Layer(nn.Module):
    """Pre-norm attention and SwiGLU with packed projections (Llama, arXiv:2302.13971)."""

    is_fsdp_unit = True

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.dim
        head_dim = dim // config.num_heads
        self.attention_norm = RmsNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.query_norm = RmsNorm(head_dim) if config.qk_norm else nn.Identity()
        self.key_norm = RmsNorm(head_dim) if config.qk_norm else nn.Identity()
        self.out = nn.Linear(dim, dim, bias=False)
        self.mlp_norm = RmsNorm(dim)
        self.gate_up = nn.Linear(dim, 2 * config.mlp_dim, bias=False)
        self.down = nn.Linear(config.mlp_dim, dim, bias=False)
        self.dropout = nn.Dropout(config.dropout)
        for module in (self.out, self.down):
            nn.init.normal_(module.weight, std=0.02 / (2 * config.num_layers) ** 0.5)

    def forward(
        self,
        x: Tensor,
        residual: Tensor | None,
        angles: tuple[Tensor, Tensor],
        past: tuple[Tensor, Tensor] | None,
        block_mask: BlockMask,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x: (B, T * S, D), whole blocks after `past`; residual: the branch not added to it yet.

        Returns both after the layer, and the keys and values of past and x.
        """
        x, q, k, v = self.project(x, residual)
        if past is None:
            attended = attention(q, k, v, block_mask, angles)
        else:
            attended, k, v = attention_with_cache(q, k, v, past, block_mask, angles)
        x, residual = self.finish(x, attended)
        return x, residual, k, v

    def read_output(self, output: tuple[Tensor, Tensor | None, Tensor, Tensor]) -> Tensor:
        """The residual stream after the layer, (B, S, D)."""
        x, residual = output[:2]
        return x if residual is None else x + residual

    def with_output(
        self, output: tuple[Tensor, Tensor | None, Tensor, Tensor], tensor: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """The same with another residual stream, of which nothing is left to add."""
        return tensor, None, *output[2:]

    def project(self, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Add the residual to x, (B, S, D); also q, k and v, (B, H, S, E), not rotated."""
        x, normed = add_norm(x, residual, self.attention_norm, multiplied=True)
        qkv = self.qkv(normed)
        q, k, v = rearrange(
            qkv, "B S (three H E) -> three B H S E", three=3, H=self.config.num_heads
        )
        return x, self.query_norm(q), self.key_norm(k), v

    def finish(self, x: Tensor, attended: Tensor) -> tuple[Tensor, Tensor]:
        """Add attention's output, (B, H, S, E), to x, (B, S, D); also the feed-forward's residual,
        not added yet."""
        residual = self.dropout(self.out(rearrange(attended, "B H S E -> B S (H E)")))
        x, normed = add_norm(x, residual, self.mlp_norm, multiplied=True)
        return x, self.dropout(self.down(swiglu(self.gate_up(normed))))


def add_norm(
    x: Tensor, residual: Tensor | None, norm: RmsNorm, multiplied: bool = False
) -> tuple[Tensor, Tensor]:
    """Add a branch that is not added yet, if there is one: the sum, (..., D), and its norm."""
    if residual is None:
        return x, rms_norm(x, norm.weight, autocast_output=multiplied)
    return add_rms_norm(x, residual, norm.weight, autocast_output=multiplied)


class Transformer(nn.Module):
    """Layers over a sequence of equal blocks, with a cache of the context blocks."""

    rows: Tensor

    def __init__(
        self, config: TransformerConfig, positions: Tensor, causal_within_frame: bool
    ) -> None:
        """positions: (S, 2), row and column of a block's tokens."""
        super().__init__()
        self.config = config
        self.frame_tokens = len(positions)
        self.rotary = Rotary(config.dim // config.num_heads, positions, config.context_frames)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_layers))
        self.norm = RmsNorm(config.dim)
        self.block_mask = BlockMask(self.frame_tokens, config.context_frames, causal_within_frame)
        rows = (config.context_frames - 1) * self.frame_tokens + torch.arange(self.frame_tokens)
        self.register_buffer("rows", rows, persistent=False)  # of a StaticCache's last block

    def forward(self, x: Tensor, cache: Cache | None = None) -> tuple[Tensor, Cache]:
        """x: (B, T * S, D), whole blocks that follow the cache -> (B, T * S, D), the new cache."""
        past_rows = cache.keys[0].shape[2] if cache else 0
        angles = self.rotary((past_rows + x.shape[1]) // self.frame_tokens)
        max_rows = self.frame_tokens * (self.config.context_frames - 1)
        checkpoints = (
            self.config.activation_checkpointing and self.training and torch.is_grad_enabled()
        )
        keys, values = [], []
        residual = None
        for index, layer in enumerate(self.layers):
            past = (cache.keys[index], cache.values[index]) if cache else None
            inputs = (x, residual, angles, past, self.block_mask)
            if checkpoints:
                x, residual, k, v = checkpoint(  # type: ignore[misc]
                    layer, *inputs, use_reentrant=False, preserve_rng_state=self.config.dropout > 0
                )
            else:
                x, residual, k, v = layer(*inputs)
            keys.append(k[:, :, max(0, k.shape[2] - max_rows) :])
            values.append(v[:, :, max(0, v.shape[2] - max_rows) :])
        return add_norm(x, residual, self.norm)[1], Cache(keys, values)

    def make_static_cache(self, cache: Cache) -> StaticCache:
        """Start the block after the cache."""
        past, capacity = cache.keys[0].shape[2], self.config.context_frames * self.frame_tokens
        start = capacity - self.frame_tokens - past
        cosine, sine = (a[start : start + past] for a in self.rotary(self.config.context_frames))
        padding = (0, 0, start, self.frame_tokens)  # rows in front of the past and behind it
        rotated = [pad(apply_rope(k, cosine, sine), padding) for k in cache.keys]
        bounds = torch.stack([torch.full_like(self.rows, start), self.rows + 1], dim=1).int()
        return StaticCache(rotated, [pad(v, padding) for v in cache.values], cache, bounds)

    def decode_token(self, x: Tensor, static_cache: StaticCache, position: int) -> Tensor:
        """Write the token at `position` of the block: (B, 1, D) -> (B, 1, D)."""
        row, bounds = self.rows[position : position + 1], static_cache.bounds[position]
        return self.write_token(x, static_cache.rotated, static_cache.values, row, bounds)

    def write_token(
        self, x: Tensor, rotated: list[Tensor], values: list[Tensor], row: Tensor, bounds: Tensor
    ) -> Tensor:
        """Write a token into row (1,) of a StaticCache; shapes are the same for all tokens."""
        cosine, sine = (a[row] for a in self.rotary(self.config.context_frames))
        residual = None
        for layer, layer_rotated, layer_values in zip(self.layers, rotated, values, strict=True):
            x, q, k, v = layer.project(x, residual)  # type: ignore[operator]
            layer_rotated.index_copy_(2, row, apply_rope(k, cosine, sine).to(layer_rotated.dtype))
            layer_values.index_copy_(2, row, v.to(layer_values.dtype))
            q = apply_rope(q, cosine, sine).to(layer_rotated.dtype)
            attended = decode_attention(q, layer_rotated, layer_values, bounds).to(x.dtype)
            x, residual = layer.finish(x, attended)  # type: ignore[operator]
        return add_norm(x, residual, self.norm)[1]

    def append_block(self, static_cache: StaticCache) -> Cache:
        """Append the static cache's full block to the context blocks."""
        cosine, sine = (a[-self.frame_tokens :] for a in self.rotary(self.config.context_frames))
        max_rows = (self.config.context_frames - 1) * self.frame_tokens
        keys, values = [], []
        for rotated, value, past_keys in zip(
            static_cache.rotated, static_cache.values, static_cache.cache.keys, strict=True
        ):
            new_keys = apply_rope(rotated[:, :, -self.frame_tokens :], cosine, -sine)
            all_keys = torch.cat([past_keys.to(new_keys.dtype), new_keys], dim=2)
            keys.append(all_keys[:, :, max(0, all_keys.shape[2] - max_rows) :])
            values.append(value[:, :, value.shape[2] - keys[-1].shape[2] :])
        return Cache(keys, values)

    def compile_steps(self, compile_fn: CompileFn) -> None:
        """Compile the forward pass of whole blocks, and the writing of a token."""
        self.forward = compile_fn(self, self.forward)
        self.write_token = compile_fn(self, self.write_token)

    def empty_cache(self, like: Tensor) -> Cache:
        """Make an empty cache with as many rows as `like`."""
        head_dim = self.config.dim // self.config.num_heads
        shape = (len(like), self.config.num_heads, 0, head_dim)
        empty = [torch.zeros(shape, device=like.device) for _ in self.layers]
        return Cache(empty, list(empty))
