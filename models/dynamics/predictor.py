"""A block-causal transformer over continuous latents, a frame at once.

It reads, for each of the last few context frames, its latents and the `frameskip` actions after it,
and predicts the next context frame (DINO-WM, arXiv:2411.04983; LeWorldModel, arXiv:2603.19312).

Letters: B clips, C context frames, P patches, D latent width, W transformer width, A action
numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from einops import rearrange
from torch import Tensor, nn

from data.actions import ActionSpec
from models.dynamics.dynamics import Memory
from models.dynamics.frameskip_dynamics import (
    ActionBlockEmbedding,
    FrameskipConfig,
    FrameskipDynamics,
)
from models.layers.transformer import Cache, Transformer, TransformerConfig
from models.tokenizers.tokenizer import LatentSpec


@dataclass(frozen=True)
class PredictorConfig(FrameskipConfig):
    transformer: TransformerConfig = field(
        default_factory=lambda: TransformerConfig(
            dim=192, num_layers=6, num_heads=6, mlp_dim=512, context_frames=3, dropout=0.1
        )
    )
    """Its `context_frames` are `frameskip` frames apart."""


class Predictor(FrameskipDynamics):
    """Predict the change of the latents, frame after frame, with a cache of keys and values."""

    config: PredictorConfig

    def __init__(self, config: PredictorConfig, latents: LatentSpec, actions: ActionSpec) -> None:
        dim = config.transformer.dim
        super().__init__(config, latents, actions, config.transformer.context_frames)
        rows, columns = latents.grid
        positions = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).float()
        self.input_proj = nn.Linear(latents.dim, dim)
        self.pos_emb = nn.Parameter(0.02 * torch.randn(latents.num_patches, dim))
        self.action_emb = ActionBlockEmbedding(actions, self.frameskip, dim)
        self.transformer = Transformer(config.transformer, positions, causal_within_frame=False)
        self.delta_head = nn.Linear(dim, latents.dim)
        nn.init.zeros_(self.delta_head.weight)  # the first prediction is no change
        nn.init.zeros_(self.delta_head.bias)
        self.add_heads(dim)

    def predict(
        self, context: Tensor, actions: Tensor, num_actions: Tensor
    ) -> tuple[Tensor, Tensor]:
        x = self._tokens(context, actions, num_actions)
        out, _ = self.transformer(rearrange(x, "B C P W -> B (C P) W"))
        out = rearrange(out, "B (C P) W -> B C P W", P=self.latents.num_patches)
        return context + self.delta_head(out).to(context.dtype), out

    def predict_next(
        self, context_frame: Tensor, actions: Tensor, num_actions: Tensor, past: Memory | None
    ) -> tuple[Tensor, Tensor, Cache]:
        """As declared, with shapes that do not depend on the number of actions."""
        assert past is None or isinstance(past, Cache)
        tokens = self._tokens(context_frame[:, None], actions, num_actions)[:, 0]
        out, cache = self.transformer(tokens, past)
        return out, context_frame + self.delta_head(out).to(context_frame.dtype), cache

    def read_past(self, context: Tensor, actions: Tensor, num_actions: Tensor) -> Cache:
        x = self._tokens(context, actions, num_actions)
        return self.transformer(rearrange(x, "B C P W -> B (C P) W"), None)[1]

    def _tokens(self, context: Tensor, actions: Tensor, num_actions: Tensor) -> Tensor:
        action_tokens = self.action_emb(actions, num_actions)[:, :, None]
        return self.input_proj(context) + action_tokens + self.pos_emb
