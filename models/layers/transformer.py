"""A Llama-style decoder over blocks: one block holds the tokens of one frame and of one action.

Letters: B clips, T blocks, S tokens of a block, C blocks in view, H heads, E head width, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.utils.checkpoint import checkpoint

from kernels import (
    View,
    add_rms_norm,
    apply_rope,
    attention,
    attention_with_cache,
    decode_attention,
    rms_norm,
    swiglu,
)
from models.config import check_positive
from models.layers.compile_fn import CompileFn


@dataclass(frozen=True)
class TransformerConfig:
    dim: int = 192
    """Width of the residual stream."""
    num_layers: int = 6
    num_heads: int = 6
    mlp_dim: int = 512
    """Width inside the SwiGLU feed-forward."""
    context_frames: int = 4
    """Frames that a frame can see, itself included."""
    qk_norm: bool = True
    """Normalise queries and keys of each head."""
    dropout: float = 0.0
    activation_checkpointing: bool = False
    """Forget activations of a layer and compute them again in the backward pass: less memory, a
    third more time."""

    def __post_init__(self) -> None:
        check_positive(
            self, "--model.transformer.", "layers", "heads", "width", "hidden", "context"
        )
        if self.dim % self.num_heads or (self.dim // self.num_heads) % 2:
            raise ValueError(
                f"a width of {self.dim} does not part into {self.num_heads} heads of even width; "
                f"change --model.transformer.width or .heads"
            )


@dataclass
class Cache:
    """Keys and values of the blocks in view, per layer: (B, H, C * S, E) each, oldest first.

    Keys are kept as they were before they are turned by their places, which are counted from the
    oldest block in view: a window can slide for ever, and no angle loses digits.
    """

    keys: list[Tensor]
    values: list[Tensor]

    def select(self, index: Tensor) -> Cache:
        return Cache([k[index] for k in self.keys], [v[index] for v in self.values])


@dataclass
class StaticCache:
    """A block that is being written token by token, behind the blocks in view.

    The layout is static: the block has the last S rows whatever came before it.
    """

    rotated: list[Tensor]
    """Keys of each layer, turned by their places: (B, H, C * S, E)."""
    values: list[Tensor]
    cache: Cache
    bounds: Tensor
    """(S, 2) int32: the rows that the token at each position sees, from and up to."""


class RmsNorm(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight)


class Rotary(nn.Module):
    """Angles for tokens at (time, row, column): each axis turns a share of the pairs.

    Only differences matter, so that an old frame can leave the window and nothing else moves.
    """

    positions: Tensor
    cosine: Tensor
    sine: Tensor

    def __init__(self, head_dim: int, positions: Tensor, num_frames: int) -> None:
        """places: (S, 2) row and column of a block's tokens.  blocks: how many are in view."""
        super().__init__()
        pairs = head_dim // 2
        time = max(1, pairs // 4)
        rows = (pairs - time) // 2
        columns = pairs - time - rows
        self.register_buffer("places", positions.float(), persistent=False)
        self.pair_counts = (time, rows, columns)
        # made once: a CUDA graph reads them where they lay when it was recorded
        cosine, sine = self._angles(num_frames)
        self.register_buffer("cosine", cosine, persistent=False)
        self.register_buffer("sine", sine, persistent=False)

    def forward(self, num_frames: int) -> tuple[Tensor, Tensor]:
        """Cosine and sine, (blocks * S, E / 2) each, for blocks in a row, the first at time 0."""
        rows = num_frames * len(self.positions)
        if rows > len(self.cosine):  # a clip that is longer than the view
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
                # wavelengths from 2 pi to about 100 positions: all that a block or a context spans
                axis[:, None] * 16.0 ** -torch.linspace(0, 1, count, device=axis.device)
                for axis, count in zip(axes, self.pair_counts, strict=True)
                if count
            ],
            dim=-1,
        )
        return angles.cos(), angles.sin()


class Layer(nn.Module):
    """Pre-norm attention and SwiGLU with packed projections (Llama, arXiv:2302.13971)."""

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
        block_mask: View,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x: (B, T * S, D), whole blocks after `past`, and the branch not added to it yet.

        Returns the same two after the layer, and the keys and values seen.
        """
        x, q, k, v = self.project(x, residual)
        if past is None:
            attended = attention(q, k, v, block_mask, angles)
        else:
            attended, k, v = attention_with_cache(q, k, v, past, block_mask, angles)
        x, residual = self.finish(x, attended)
        return x, residual, k, v

    def project(self, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Add the branch to x, (B, S, D): queries, keys and values, (B, H, S, E), not turned."""
        x, normed = _add_norm(x, residual, self.attention_norm, multiplied=True)
        qkv = self.qkv(normed)
        q, k, v = rearrange(
            qkv, "B S (three H E) -> three B H S E", three=3, H=self.config.num_heads
        )
        return x, self.query_norm(q), self.key_norm(k), v

    def finish(self, x: Tensor, attended: Tensor) -> tuple[Tensor, Tensor]:
        """Add what attention saw, (B, H, S, E), to x, (B, S, D): it, and the feed-forward branch
        that is to be added."""
        residual = self.dropout(self.out(rearrange(attended, "B H S E -> B S (H E)")))
        x, normed = _add_norm(x, residual, self.mlp_norm, multiplied=True)
        return x, self.dropout(self.down(swiglu(self.gate_up(normed))))


def _add_norm(
    x: Tensor, residual: Tensor | None, norm: RmsNorm, multiplied: bool = False
) -> tuple[Tensor, Tensor]:
    if residual is None:
        return x, rms_norm(x, norm.weight, autocast_output=multiplied)
    return add_rms_norm(x, residual, norm.weight, autocast_output=multiplied)


class Transformer(nn.Module):
    """Layers over a sequence of equal blocks, with a cache of the blocks in view."""

    rows: Tensor

    def __init__(
        self, config: TransformerConfig, positions: Tensor, causal_within_frame: bool
    ) -> None:
        """places: (S, 2) row and column of a block's tokens."""
        super().__init__()
        self.config = config
        self.frame_tokens = len(positions)
        self.rotary = Rotary(config.dim // config.num_heads, positions, config.context_frames)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_layers))
        self.norm = RmsNorm(config.dim)
        self.block_mask = View(self.frame_tokens, config.context_frames, causal_within_frame)
        rows = (config.context_frames - 1) * self.frame_tokens + torch.arange(self.frame_tokens)
        self.register_buffer("rows", rows, persistent=False)  # of a draft's own block

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
        return _add_norm(x, residual, self.norm)[1], Cache(keys, values)

    def make_static_cache(self, cache: Cache) -> StaticCache:
        """Begin the block that follows the cache."""
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
        """Write a token into rows of a draft: shapes are the same for all, row (1,) int64."""
        cosine, sine = (a[row] for a in self.rotary(self.config.context_frames))
        residual = None
        for layer, layer_rotated, layer_values in zip(self.layers, rotated, values, strict=True):
            x, q, k, v = layer.project(x, residual)  # type: ignore[operator]
            layer_rotated.index_copy_(2, row, apply_rope(k, cosine, sine).to(layer_rotated.dtype))
            layer_values.index_copy_(2, row, v.to(layer_values.dtype))
            q = apply_rope(q, cosine, sine).to(layer_rotated.dtype)
            attended = decode_attention(q, layer_rotated, layer_values, bounds).to(x.dtype)
            x, residual = layer.finish(x, attended)  # type: ignore[operator]
        return _add_norm(x, residual, self.norm)[1]

    def append_block(self, static_cache: StaticCache) -> Cache:
        """Take the block, which is full, among those in view."""
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
        """Compile whole blocks, and the writing of a token into a draft."""
        self.forward = compile_fn(self, self.forward)
        self.write_token = compile_fn(self, self.write_token)

    def empty_cache(self, like: Tensor) -> Cache:
        """A cache of nothing, for sequences as many as `like` has rows."""
        head_dim = self.config.dim // self.config.num_heads
        shape = (len(like), self.config.num_heads, 0, head_dim)
        empty = [torch.zeros(shape, device=like.device) for _ in self.layers]
        return Cache(empty, list(empty))
