"""A Llama-style decoder over blocks: one block holds the tokens of one frame and of one action.

Letters: B clips, T blocks, S tokens of a block, C blocks in view, H heads, E head width, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kernels import rms_norm, rotate, swiglu


@dataclass(frozen=True)
class TransformerConfig:
    width: int = 192
    """Width of the residual stream."""
    layers: int = 6
    heads: int = 6
    hidden: int = 512
    """Width inside the SwiGLU feed-forward."""
    context: int = 4
    """Frames that a frame can see, itself included."""
    qk_norm: bool = True
    """Normalise queries and keys of each head."""
    dropout: float = 0.0
    recompute: bool = False
    """Forget activations of a layer and compute them again in the backward pass: less memory, a
    third more time."""

    def __post_init__(self) -> None:
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise ValueError(
                f"a width of {self.width} does not part into {self.heads} heads of even width; "
                f"change --model.transformer.width or .heads"
            )


@dataclass
class Cache:
    """Keys and values of the blocks in view, per layer: (B, H, C * S, E) each, oldest first."""

    keys: list[Tensor]
    values: list[Tensor]
    blocks: int
    """Blocks seen so far, those out of view included."""

    def select(self, index: Tensor) -> Cache:
        return Cache([k[index] for k in self.keys], [v[index] for v in self.values], self.blocks)


class RmsNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight)


class Rotary(nn.Module):
    """Angles for tokens at (time, row, column): each axis turns a share of the pairs.

    Only differences matter, so that an old frame can leave the window and nothing else moves.
    """

    places: Tensor

    def __init__(self, head_width: int, places: Tensor) -> None:
        """places: (S, 2) row and column of a block's tokens."""
        super().__init__()
        pairs = head_width // 2
        time = max(1, pairs // 4)
        rows = (pairs - time) // 2
        columns = pairs - time - rows
        self.register_buffer("places", places.float(), persistent=False)
        self.counts = (time, rows, columns)

    def forward(self, start: int, blocks: int) -> tuple[Tensor, Tensor]:
        """Cosine and sine, (blocks * S, E / 2) each, for blocks `start`, `start + 1` ..."""
        when = torch.arange(start, start + blocks, device=self.places.device).float()
        size = len(self.places)
        axes = (
            when.repeat_interleave(size),
            self.places[:, 0].repeat(blocks),
            self.places[:, 1].repeat(blocks),
        )
        angles = torch.cat(
            [
                # wavelengths from 2 pi to about 100 positions: all that a block or a context spans
                axis[:, None] * 16.0 ** -torch.linspace(0, 1, count, device=axis.device)
                for axis, count in zip(axes, self.counts, strict=True)
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
        width = config.width
        head = width // config.heads
        self.attention_norm = RmsNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.query_norm = RmsNorm(head) if config.qk_norm else nn.Identity()
        self.key_norm = RmsNorm(head) if config.qk_norm else nn.Identity()
        self.out = nn.Linear(width, width, bias=False)
        self.feed_norm = RmsNorm(width)
        self.gate_up = nn.Linear(width, 2 * config.hidden, bias=False)
        self.down = nn.Linear(config.hidden, width, bias=False)
        self.dropout = nn.Dropout(config.dropout)
        for module in (self.out, self.down):
            nn.init.normal_(module.weight, std=0.02 / (2 * config.layers) ** 0.5)

    def forward(
        self,
        x: Tensor,
        angles: tuple[Tensor, Tensor],
        past: tuple[Tensor, Tensor] | None,
        size: int,
        inside: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x: (B, T * size, D), whole blocks after `past` -> the same; the keys and values seen."""
        q, k, v = self.project(x, angles, past)
        seen = windowed_attention(q, k, v, size, self.config.context, inside)
        return self.finish(x, seen), k, v

    def project(
        self, x: Tensor, angles: tuple[Tensor, Tensor], past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x: (B, S, D) -> its queries (B, H, S, E), and the keys and values of the past and x."""
        qkv = self.qkv(self.attention_norm(x))
        q, k, v = rearrange(qkv, "B S (three H E) -> three B H S E", three=3, H=self.config.heads)
        q = rotate(self.query_norm(q), *angles)
        k = rotate(self.key_norm(k), *angles)
        if past is not None:
            k = torch.cat([past[0].to(k.dtype), k], dim=2)
            v = torch.cat([past[1].to(v.dtype), v], dim=2)
        return q, k, v

    def finish(self, x: Tensor, seen: Tensor) -> Tensor:
        """Add what attention saw, (B, H, S, E), and the feed-forward to x, (B, S, D)."""
        x = x + self.dropout(self.out(rearrange(seen, "B H S E -> B S (H E)")))
        return x + self.dropout(self.down(swiglu(self.gate_up(self.feed_norm(x)))))


def windowed_attention(
    q: Tensor, k: Tensor, v: Tensor, size: int, context: int, inside: Tensor | None
) -> Tensor:
    """Let each block see itself and the `context - 1` blocks before it.

    q: (B, H, T * size, E).  k, v: (B, H, (P + T) * size, E) with P <= context - 1 past blocks.
    Block by block rather than under one mask: nothing out of view is ever multiplied.
    """
    past = (k.shape[2] - q.shape[2]) // size
    q = q * q.shape[-1] ** -0.5
    outputs = []
    for block in range(q.shape[2] // size):
        last = (past + block + 1) * size
        first = max(0, last - context * size)
        query = q[:, :, block * size : (block + 1) * size]
        outputs.append(attention(query, k[:, :, first:last], v[:, :, first:last], inside))
    return torch.cat(outputs, dim=2)


def attention(q: Tensor, k: Tensor, v: Tensor, inside: Tensor | None = None) -> Tensor:
    """softmax(q k^T) v.  `inside`, (S, S) bool: which of the last S keys each query may see.

    Outside autocast, which would take the scores to float32 and back: softmax adds up in float32
    whatever it is given.
    """
    with torch.autocast(q.device.type, enabled=False):
        scores = q @ k.transpose(-1, -2)
        if inside is not None:
            size = len(inside)
            own = scores[..., -size:].masked_fill(~inside, float("-inf"))
            scores = torch.cat([scores[..., :-size], own], dim=-1)
        return torch.softmax(scores, dim=-1) @ v


class Transformer(nn.Module):
    """Layers over a sequence of equal blocks, with a cache of the blocks in view."""

    inside: Tensor | None

    def __init__(self, config: TransformerConfig, places: Tensor, causal_inside: bool) -> None:
        super().__init__()
        self.config = config
        self.size = len(places)
        self.rotary = Rotary(config.width // config.heads, places)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = RmsNorm(config.width)
        inside = torch.ones(self.size, self.size, dtype=torch.bool).tril()
        self.register_buffer("inside", inside if causal_inside else None, persistent=False)

    def forward(self, x: Tensor, cache: Cache | None = None) -> tuple[Tensor, Cache]:
        """x: (B, T * S, D), whole blocks that follow the cache -> (B, T * S, D), the new cache."""
        blocks = x.shape[1] // self.size
        start = cache.blocks if cache else 0
        angles = self.rotary(start, blocks)
        keep = self.size * (self.config.context - 1)
        forgets = self.config.recompute and self.training and torch.is_grad_enabled()
        keys, values = [], []
        for index, layer in enumerate(self.layers):
            past = (cache.keys[index], cache.values[index]) if cache else None
            given = (x, angles, past, self.size, self.inside)
            if forgets:
                x, k, v = checkpoint(layer, *given, use_reentrant=False)  # type: ignore[misc]
            else:
                x, k, v = layer(*given)
            keys.append(k[:, :, max(0, k.shape[2] - keep) :])
            values.append(v[:, :, max(0, v.shape[2] - keep) :])
        return self.norm(x), Cache(keys, values, start + blocks)

    def extend(self, x: Tensor, cache: Cache, position: int) -> tuple[Tensor, Cache]:
        """Take the one token at `position` of the block that follows the cache: (B, 1, D)."""
        cosine, sine = self.rotary(cache.blocks, 1)
        angles = (cosine[position : position + 1], sine[position : position + 1])
        full = position + 1 == self.size
        keep = self.size * (self.config.context - 1)
        keys, values = [], []
        for index, layer in enumerate(self.layers):
            past = (cache.keys[index], cache.values[index])
            q, k, v = layer.project(x, angles, past)  # type: ignore[operator]
            x = layer.finish(x, attention(q * q.shape[-1] ** -0.5, k, v))  # type: ignore[operator]
            low = max(0, k.shape[2] - keep) if full else 0
            keys.append(k[:, :, low:])
            values.append(v[:, :, low:])
        return self.norm(x), Cache(keys, values, cache.blocks + full)

    def empty_cache(self, like: Tensor) -> Cache:
        """A cache of nothing, for sequences as many as `like` has rows."""
        head = self.config.width // self.config.heads
        shape = (len(like), self.config.heads, 0, head)
        nothing = [torch.zeros(shape, device=like.device) for _ in self.layers]
        return Cache(nothing, list(nothing), 0)
