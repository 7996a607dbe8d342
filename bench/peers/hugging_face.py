"""Hugging Face's Llama, set up to compute the same function as our transformer.

Letters: D width, V vocabulary, S tokens, E head width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal, Protocol
from unittest import mock

import torch
from torch import Tensor, nn
from transformers import CompileConfig, LlamaConfig, LlamaForCausalLM
from transformers.models.llama import modeling_llama

from models.layers.transformer import Transformer, TransformerConfig

# a model of theirs is Any here: decorators hide from a type checker what it takes and holds
Attention = Literal["eager", "sdpa"]


class Ours(Protocol):
    """The model whose weights are copied."""

    embed: nn.Embedding
    transformer: Transformer
    head: nn.Linear


class RotaryTable(nn.Module):
    """Angles of positions, looked up rather than computed: ours encode a token's position in its
    frame."""

    cosine: Tensor
    sine: Tensor

    def __init__(self, cosine: Tensor, sine: Tensor) -> None:
        """cosine, sine: (S, E / 2)."""
        super().__init__()
        self.register_buffer("cosine", torch.cat([cosine, cosine], dim=-1), persistent=False)
        self.register_buffer("sine", torch.cat([sine, sine], dim=-1), persistent=False)

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Look up position_ids: (1, S) -> cosine and sine, (1, S, E), in x's dtype."""
        return self.cosine[position_ids].to(x.dtype), self.sine[position_ids].to(x.dtype)


def llama(
    config: TransformerConfig, sequence_length: int, vocab_size: int, attention: Attention
) -> Any:
    """Build a Llama of our sizes for sequences of up to `sequence_length` tokens."""
    sizes: dict[str, Any] = dict(
        vocab_size=vocab_size,
        hidden_size=config.dim,
        intermediate_size=config.mlp_dim,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_heads,
        head_dim=config.dim // config.num_heads,
        max_position_embeddings=sequence_length,
        rms_norm_eps=1e-6,
        tie_word_embeddings=False,
        attn_implementation=attention,
        # no end token: every run generates as many tokens as requested
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    return LlamaForCausalLM(LlamaConfig(**sizes))


@torch.no_grad()
def copy_weights(peer: Any, ours: Ours) -> None:
    """Copy our weights and our angles: then both compute the same function."""
    for theirs, mine, rows in matching_weights(peer, ours):
        theirs.copy_(mine[rows])
    peer.model.rotary_emb = RotaryTable(
        *ours.transformer.rotary(ours.transformer.config.context_frames)
    )


def matching_weights(peer: Any, ours: Ours) -> Iterator[tuple[Tensor, Tensor, slice]]:
    """Yield each of their parameters, the one of ours that holds it, and its rows there."""
    whole = slice(None)
    yield peer.model.embed_tokens.weight, ours.embed.weight, whole
    for theirs, mine in zip(peer.model.layers, ours.transformer.layers, strict=True):
        their: Any = theirs
        my: Any = mine
        attention, feed = their.self_attn, their.mlp
        packed = [
            (my.qkv.weight, [attention.q_proj, attention.k_proj, attention.v_proj]),
            (my.out.weight, [attention.o_proj]),
            (my.gate_up.weight, [feed.gate_proj, feed.up_proj]),
            (my.down.weight, [feed.down_proj]),
            (my.attention_norm.weight, [their.input_layernorm]),
            (my.mlp_norm.weight, [their.post_attention_layernorm]),
        ]
        for weight, parts in packed:
            share = len(weight) // len(parts)
            for number, part in enumerate(parts):
                yield part.weight, weight, slice(number * share, (number + 1) * share)
    yield peer.model.norm.weight, ours.transformer.norm.weight, whole
    yield peer.lm_head.weight, ours.head.weight, whole


def loss_of(peer: Callable[..., Any]) -> Callable[[Tensor, Tensor], Tensor]:
    """Return their cross-entropy of the next tokens: tokens (B, S), targets (B, S) -> ()."""

    def loss(tokens: Tensor, targets: Tensor) -> Tensor:
        # `labels` alone would be shifted inside, and the last token computed for nothing
        return peer(tokens, labels=targets, shift_labels=targets, use_cache=False).loss

    return loss


def with_liger(peer: Any) -> Callable[..., Any]:
    """Put Liger-Kernel's norms, gate, angles and loss into a Llama, and return its forward.

    Raises ImportError where it is not installed.  It also replaces classes and the function of
    angles of all Llamas: these are restored outside a call.
    """
    from liger_kernel.transformers import (  # pyright: ignore[reportMissingImports]
        liger_rotary_pos_emb,
        monkey_patch,
    )

    names = ("LlamaRMSNorm", "LlamaMLP")
    with mock.patch.multiple(modeling_llama, **{n: getattr(modeling_llama, n) for n in names}):
        monkey_patch.apply_liger_kernel_to_llama(rope=False, model=peer)

    def forward(*given: Any, **named: Any) -> Any:
        with mock.patch.object(modeling_llama, "apply_rotary_pos_emb", liger_rotary_pos_emb):
            return peer(*given, **named)

    return forward


Decoding = Literal["dynamic cache", "static cache", "static cache + compile"]


def decoder(peer: Any, prompt: Tensor, new_tokens: int, mode: Decoding) -> Callable[[], Tensor]:
    """Return a greedy `generate`: prompt (1, S) -> (1, S + new_tokens)."""
    settings: dict[str, Any] = {
        "max_new_tokens": new_tokens,
        "min_new_tokens": new_tokens,
        "do_sample": False,
    }
    settings["cache_implementation"] = "dynamic" if mode == "dynamic cache" else "static"
    if mode == "static cache + compile":
        compile_config: Any = CompileConfig(mode="reduce-overhead", fullgraph=False)
        compile_config._compile_all_devices = True  # by default it skips the CPU
        settings["compile_config"] = compile_config
    else:
        settings["disable_compile"] = True
    mask = torch.ones_like(prompt)

    def decode() -> Tensor:
        with torch.inference_mode():
            return peer.generate(prompt, attention_mask=mask, **settings)

    return decode
