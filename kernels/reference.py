"""The definition of every operation, in a few lines of PyTorch: float64 in, float64 out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, linear, silu


def _to_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    """Compute x / sqrt(mean(x^2) + eps) * weight (Zhang and Sennrich, arXiv:1910.07467, eq. 4)."""
    wide = _to_float32(x)
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (wide * scale * _to_float32(weight)).to(x.dtype)


def add_rms_norm(
    x: Tensor, branch: Tensor, weight: Tensor, eps: float = 1e-6
) -> tuple[Tensor, Tensor]:
    """Add a branch to the residual stream: the sum, and its norm, which the next branch reads."""
    total = x + branch
    return total, rms_norm(total, weight, eps)


def apply_rope(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotate pairs of channels (RoPE, Su et al., arXiv:2104.09864); channel d is paired with
    d + D / 2."""
    first, second = x.chunk(2, dim=-1)
    cosine, sine = cosine.to(x.dtype), sine.to(x.dtype)
    return torch.cat([first * cosine - second * sine, first * sine + second * cosine], dim=-1)


def swiglu(gate_up: Tensor) -> Tensor:
    """Compute silu(gate) * up (Shazeer, arXiv:2002.05202, equation 6): (..., 2F) -> (..., F)."""
    gate, up = gate_up.chunk(2, dim=-1)
    return silu(gate) * up


@dataclass(frozen=True)
class BlockMask:
    """Which keys a query attends to, in a sequence of equal blocks whose last ones are the queries.

    BlockMask() is causal.  BlockMask(block_size=S) is block-causal: all tokens of a frame see each
    other and the frames before.  With block_size = the whole sequence nothing is masked.
    """

    block_size: int = 1
    """Tokens of a block."""
    context_blocks: int | None = None
    """Blocks that a block attends to, itself included; None: all before it."""
    causal_within_block: bool = False
    """Within its own block, a token attends only to tokens up to itself."""

    def mask(self, queries: int, keys: int, device: torch.device | None = None) -> Tensor:
        """Return (Q, K) bool, True where a query attends to a key; the queries are the last of the
        keys."""
        position = torch.arange(keys, device=device)
        query, key = position[keys - queries :, None], position[None]
        behind = query // self.block_size - key // self.block_size
        visible = behind >= 0
        if self.context_blocks is not None:
            visible = visible & (behind < self.context_blocks)
        return visible & (query >= key) if self.causal_within_block else visible


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    block_mask: BlockMask,
    angles: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Compute softmax(q k^T / sqrt(E)) v over visible keys (Vaswani et al., arXiv:1706.03762).

    angles: cosine and sine, (K, E / 2), that rotate keys, and queries as the last of them, first.
    """
    queries, keys = q.shape[-2], k.shape[-2]
    if angles is not None:
        q = apply_rope(q, *(a[keys - queries :] for a in angles))
        k = apply_rope(k, *angles)
    scores = _to_float32(q) @ _to_float32(k).transpose(-1, -2) * q.shape[-1] ** -0.5
    mask = block_mask.mask(queries, keys, q.device)
    probs = torch.softmax(scores.masked_fill(~mask, float("-inf")), dim=-1)
    return (probs @ _to_float32(v)).to(q.dtype)


def attention_with_cache(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cache: tuple[Tensor, Tensor],
    block_mask: BlockMask,
    angles: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Attend to a cache and to the new keys; also return all keys and values, the cache first."""
    k, v = torch.cat([cache[0], k], dim=-2), torch.cat([cache[1], v], dim=-2)
    return attention(q, k, v, block_mask, angles), k, v


def decode_attention(q: Tensor, keys: Tensor, values: Tensor, bounds: Tensor) -> Tensor:
    """Attend to the rows `bounds[0]` up to `bounds[1]` of a static cache."""
    low, high = bounds.tolist()
    scores = (
        _to_float32(q) @ _to_float32(keys[:, :, low:high]).transpose(-1, -2) * q.shape[-1] ** -0.5
    )
    return (torch.softmax(scores, dim=-1) @ _to_float32(values[:, :, low:high])).to(q.dtype)


def linear_cross_entropy(
    x: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None = None,
    before: Tensor | None = None,
    bonus: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute -log softmax(x weight^T + bias)[target] of each row, and the likeliest class.

    With `before` and `bonus`, bonus[n] is added to row n's logit of class before[n].
    """
    logits = linear(
        _to_float32(x), _to_float32(weight), None if bias is None else _to_float32(bias)
    )
    if before is not None and bonus is not None:
        logits = logits.scatter_add(-1, before[:, None], _to_float32(bonus)[:, None])
    losses = torch.logsumexp(logits, -1) - logits.gather(-1, target[:, None])[:, 0]
    return losses, logits.argmax(-1)


def nearest_code(vectors: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Find the nearest row of the codebook, argmin |e|^2 - 2 v e, and what an EMA of the codebook
    needs: the number of vectors of each row, and their sum (van den Oord et al., arXiv:1711.00937,
    appendix A.1)."""
    vectors, codebook = _to_float32(vectors), _to_float32(codebook)
    codes = (codebook.square().sum(-1) - 2 * vectors @ codebook.T).argmin(-1)
    counts = torch.bincount(codes, minlength=len(codebook))
    sums = torch.zeros_like(codebook).index_add(0, codes, vectors)
    return codes, counts, sums


def gru_step(
    parts: Tensor,
    state: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-3,
) -> Tensor:
    """Apply the gates of a GRU whose three parts come from one product (Hafner et al.,
    arXiv:2301.04104): reset r, candidate c, update u; h' = u tanh(r c) + (1 - u) h, with u biased
    by -1.  With `weight` and `bias` the parts go through one LayerNorm first.
    """
    wide = _to_float32(parts)
    if weight is not None and bias is not None:
        wide = layer_norm(wide, wide.shape[-1:], _to_float32(weight), _to_float32(bias), eps)
    reset, candidate, update = wide.chunk(3, dim=-1)
    update = torch.sigmoid(update - 1)
    fresh = torch.tanh(torch.sigmoid(reset) * candidate)
    return (update * fresh + (1 - update) * _to_float32(state)).to(state.dtype)
