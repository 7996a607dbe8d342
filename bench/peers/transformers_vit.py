"""An image world model whose layers are those of a ViT of transformers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import ViTConfig
from transformers.models.vit.modeling_vit import ViTLayer

from models.layers.vit import VitLayers
from models.tokenizers.iwm import Iwm


class TransformersLayers(nn.Module):
    """Layers of transformers' ViT and a norm: (B, N, D) -> (B, N, D), with the weights of ours."""

    @torch.no_grad()
    def __init__(self, ours: VitLayers) -> None:
        super().__init__()
        first: nn.TransformerEncoderLayer = ours.layers[0]  # type: ignore[assignment]
        config = ViTConfig(
            hidden_size=first.linear1.in_features,
            num_hidden_layers=len(ours.layers),
            num_attention_heads=first.self_attn.num_heads,
            intermediate_size=first.linear1.out_features,
            layer_norm_eps=first.norm1.eps,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            attn_implementation="sdpa",  # type: ignore[call-arg]
        )
        self.layers = nn.ModuleList(ViTLayer(config) for _ in ours.layers)
        self.norm = nn.LayerNorm(config.hidden_size, eps=first.norm1.eps)
        self.norm.load_state_dict(ours.norm.state_dict())
        for theirs, mine in zip(self.layers, ours.layers, strict=True):
            theirs.load_state_dict(renamed(mine.state_dict()))

    def forward(self, tokens: Tensor) -> Tensor:
        for layer in self.layers:
            tokens = layer(tokens)
        return self.norm(tokens)


def renamed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of an nn.TransformerEncoderLayer as a ViTLayer's."""
    found = {}
    for kind in ("weight", "bias"):
        packed = weights[f"self_attn.in_proj_{kind}"].chunk(3)
        for name, part in zip("qkv", packed, strict=True):
            found[f"attention.{name}_proj.{kind}"] = part
        found[f"attention.o_proj.{kind}"] = weights[f"self_attn.out_proj.{kind}"]
        found[f"mlp.fc1.{kind}"] = weights[f"linear1.{kind}"]
        found[f"mlp.fc2.{kind}"] = weights[f"linear2.{kind}"]
        found[f"layernorm_before.{kind}"] = weights[f"norm1.{kind}"]
        found[f"layernorm_after.{kind}"] = weights[f"norm2.{kind}"]
    return found


class TransformersIwm(Iwm):
    """The same step, with their layers in encoder, target encoder and predictor."""

    def __init__(self, ours: Iwm) -> None:
        super().__init__(ours.config)
        self.load_state_dict(ours.state_dict())
        for part in (self.encoder, self.target_encoder, self.predictor):
            part.layers = TransformersLayers(part.layers)  # type: ignore[assignment]
        self.target_encoder.requires_grad_(False)
