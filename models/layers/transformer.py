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
    attend_cache,
    attention,
    attention_after,
    rms_norm,
    rotate,
    swiglu,
)
from models.config import start_at_one
from models.layers.compile_fn import Compiler


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
        start_at_one(self, "--model.transformer.", "layers", "heads", "width", "hidden", "context")
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise ValueError(
                f"a width of {self.width} does not part into {self.heads} heads of even width; "
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
class Draft:
    """A block that is being written token by token, behind the blocks in view.

    The layout is static: the block has the last S rows whatever came before it.
    """

    turned: list[Tensor]
    """Keys of each layer, turned by their places: (B, H, C * S, E)."""
    values: list[Tensor]
    cache: Cache
    bounds: Tensor
    """(S, 2) int32: the rows that the token at each position sees, from and up to."""


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
    cosine: Tensor
    sine: Tensor

    def __init__(self, head_width: int, places: Tensor, blocks: int) -> None:
        """places: (S, 2) row and column of a block's tokens.  blocks: how many are in view."""
        super().__init__()
        pairs = head_width // 2
        time = max(1, pairs // 4)
        rows = (pairs - time) // 2
        columns = pairs - time - rows
        self.register_buffer("places", places.float(), persistent=False)
        self.counts = (time, rows, columns)
        # made once: a CUDA graph reads them where they lay when it was recorded
        cosine, sine = self._angles(blocks)
        self.register_buffer("cosine", cosine, persistent=False)
        self.register_buffer("sine", sine, persistent=False)

    def forward(self, blocks: int) -> tuple[Tensor, Tensor]:
        """Cosine and sine, (blocks * S, E / 2) each, for blocks in a row, the first at time 0."""
        rows = blocks * len(self.places)
        if rows > len(self.cosine):  # a clip that is longer than the view
            return self._angles(blocks)
        return self.cosine[:rows], self.sine[:rows]

    def _angles(self, blocks: int) -> tuple[Tensor, Tensor]:
        size = len(self.places)
        axes = (
            torch.arange(blocks, device=self.places.device).float().repeat_interleave(size),
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
        branch: Tensor | None,
        angles: tuple[Tensor, Tensor],
        past: tuple[Tensor, Tensor] | None,
        view: View,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x: (B, T * S, D), whole blocks after `past`, and the branch not added to it yet.

        Returns the same two after the layer, and the keys and values seen.
        """
        x, q, k, v = self.project(x, branch)
        if past is None:
            seen = attention(q, k, v, view, angles)
        else:
            seen, k, v = attention_after(q, k, v, past, view, angles)
        x, branch = self.finish(x, seen)
        return x, branch, k, v

    def project(self, x: Tensor, branch: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Add the branch to x, (B, S, D): queries, keys and values, (B, H, S, E), not turned."""
        x, normed = _add_norm(x, branch, self.attention_norm, multiplied=True)
        qkv = self.qkv(normed)
        q, k, v = rearrange(qkv, "B S (three H E) -> three B H S E", three=3, H=self.config.heads)
        return x, self.query_norm(q), self.key_norm(k), v

    def finish(self, x: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """Add what attention saw, (B, H, S, E), to x, (B, S, D): it, and the feed-forward branch
        that is to be added."""
        branch = self.dropout(self.out(rearrange(seen, "B H S E -> B S (H E)")))
        x, normed = _add_norm(x, branch, self.feed_norm, multiplied=True)
        return x, self.dropout(self.down(swiglu(self.gate_up(normed))))


def _add_norm(
    x: Tensor, branch: Tensor | None, norm: RmsNorm, multiplied: bool = False
) -> tuple[Tensor, Tensor]:
    if branch is None:
        return x, rms_norm(x, norm.weight, multiplied=multiplied)
    return add_rms_norm(x, branch, norm.weight, multiplied=multiplied)


class Transformer(nn.Module):
    """Layers over a sequence of equal blocks, with a cache of the blocks in view."""

    rows: Tensor

    def __init__(self, config: TransformerConfig, places: Tensor, causal_inside: bool) -> None:
        """places: (S, 2) row and column of a block's tokens."""
        super().__init__()
        self.config = config
        self.size = len(places)
        self.rotary = Rotary(config.width // config.heads, places, config.context)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = RmsNorm(config.width)
        self.view = View(self.size, config.context, causal_inside)
        rows = (config.context - 1) * self.size + torch.arange(self.size)
        self.register_buffer("rows", rows, persistent=False)  # of a draft's own block

    def forward(self, x: Tensor, cache: Cache | None = None) -> tuple[Tensor, Cache]:
        """x: (B, T * S, D), whole blocks that follow the cache -> (B, T * S, D), the new cache."""
        past_rows = cache.keys[0].shape[2] if cache else 0
        angles = self.rotary((past_rows + x.shape[1]) // self.size)
        keep = self.size * (self.config.context - 1)
        forgets = self.config.recompute and self.training and torch.is_grad_enabled()
        keys, values = [], []
        branch = None
        for index, layer in enumerate(self.layers):
            past = (cache.keys[index], cache.values[index]) if cache else None
            given = (x, branch, angles, past, self.view)
            if forgets:
                x, branch, k, v = checkpoint(  # type: ignore[misc]
                    layer, *given, use_reentrant=False, preserve_rng_state=self.config.dropout > 0
                )
            else:
                x, branch, k, v = layer(*given)
            keys.append(k[:, :, max(0, k.shape[2] - keep) :])
            values.append(v[:, :, max(0, v.shape[2] - keep) :])
        return _add_norm(x, branch, self.norm)[1], Cache(keys, values)

    def draft(self, cache: Cache) -> Draft:
        """Begin the block that follows the cache."""
        past, whole = cache.keys[0].shape[2], self.config.context * self.size
        low = whole - self.size - past
        cosine, sine = (a[low : low + past] for a in self.rotary(self.config.context))
        room = (0, 0, low, self.size)  # rows in front of the past and behind it
        turned = [pad(rotate(k, cosine, sine), room) for k in cache.keys]
        bounds = torch.stack([torch.full_like(self.rows, low), self.rows + 1], dim=1).int()
        return Draft(turned, [pad(v, room) for v in cache.values], cache, bounds)

    def extend(self, x: Tensor, draft: Draft, position: int) -> Tensor:
        """Write the token at `position` of the block: (B, 1, D) -> (B, 1, D)."""
        row, bounds = self.rows[position : position + 1], draft.bounds[position]
        return self.write(x, draft.turned, draft.values, row, bounds)

    def write(
        self, x: Tensor, turned: list[Tensor], values: list[Tensor], row: Tensor, bounds: Tensor
    ) -> Tensor:
        """Write a token into rows of a draft: shapes are the same for all, row (1,) int64."""
        cosine, sine = (a[row] for a in self.rotary(self.config.context))
        branch = None
        for layer, layer_turned, layer_values in zip(self.layers, turned, values, strict=True):
            x, q, k, v = layer.project(x, branch)  # type: ignore[operator]
            layer_turned.index_copy_(2, row, rotate(k, cosine, sine).to(layer_turned.dtype))
            layer_values.index_copy_(2, row, v.to(layer_values.dtype))
            q = rotate(q, cosine, sine).to(layer_turned.dtype)
            seen = attend_cache(q, layer_turned, layer_values, bounds).to(x.dtype)
            x, branch = layer.finish(x, seen)  # type: ignore[operator]
        return _add_norm(x, branch, self.norm)[1]

    def close(self, draft: Draft) -> Cache:
        """Take the block, which is full, among those in view."""
        cosine, sine = (a[-self.size :] for a in self.rotary(self.config.context))
        keep = (self.config.context - 1) * self.size
        keys, values = [], []
        for turned, value, before in zip(draft.turned, draft.values, draft.cache.keys, strict=True):
            own = rotate(turned[:, :, -self.size :], cosine, -sine)
            known = torch.cat([before.to(own.dtype), own], dim=2)
            keys.append(known[:, :, max(0, known.shape[2] - keep) :])
            values.append(value[:, :, value.shape[2] - keys[-1].shape[2] :])
        return Cache(keys, values)

    def compile_steps(self, compiler: Compiler) -> None:
        """Compile whole blocks, and the writing of a token into a draft."""
        self.forward = compiler(self, self.forward)
        self.write = compiler(self, self.write)

    def empty_cache(self, like: Tensor) -> Cache:
        """A cache of nothing, for sequences as many as `like` has rows."""
        head = self.config.width // self.config.heads
        shape = (len(like), self.config.heads, 0, head)
        nothing = [torch.zeros(shape, device=like.device) for _ in self.layers]
        return Cache(nothing, list(nothing))
