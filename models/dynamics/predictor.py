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
from models.dynamics.dynamics import Memory, State
from models.dynamics.frameskip_dynamics import (
    FrameskipConfig,
    FrameskipDynamics,
    FrameskipMemory,
)
from models.layers.action_block_embedding import ActionBlockEmbedding
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

    def pack(self, state: State) -> dict[str, Tensor]:
        """The context, (B, layers, H, (C - 1) P, E) twice, and a block with the actions given so
        far, (B, frameskip, A), and their number, (B,).

        ValueError for a state that lacks some of its context.
        """
        memory = state.memory
        assert isinstance(memory, FrameskipMemory)
        rows = (self.context_frames - 1) * self.latents.num_patches
        past = memory.past
        if not rows or not isinstance(past, Cache) or past.keys[0].shape[2] < rows:
            raise ValueError(
                f"a step of fixed shapes needs a context of 2 frames or more, and a state with all "
                f"of it: {self.context} real frames"
            )
        given = memory.pending_actions
        pending = given.new_zeros(len(given), self.frameskip, *self.actions.shape)
        pending[:, : given.shape[1]] = given
        return {
            "context_frame": memory.context_frame,
            "keys": torch.stack(past.keys, 1),
            "values": torch.stack(past.values, 1),
            "pending": pending,
            "count": torch.full((len(given),), given.shape[1], device=given.device),
        }

    def step_packed(
        self, packed: dict[str, Tensor], action: Tensor
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """As `step`, alike at all places of a block."""
        count, pending = packed["count"], packed["pending"]
        is_next = self.counts[:-1] == count[:, None]
        actions = torch.where(_widened(is_next, pending), action[:, None], pending)
        keys, values = (list(packed[name].unbind(1)) for name in ("keys", "values"))
        out, predicted, after = self.predict_next(
            packed["context_frame"], actions[:, None], count[:, None] + 1, Cache(keys, values)
        )
        within = packed | {"pending": actions, "count": count + 1}
        behind = {
            "context_frame": predicted,
            "keys": torch.stack(after.keys, 1),
            "values": torch.stack(after.values, 1),
            "pending": torch.zeros_like(actions),
            "count": torch.zeros_like(count),
        }
        full = count + 1 == self.frameskip
        packed = {n: torch.where(_widened(full, within[n]), behind[n], within[n]) for n in behind}
        return predicted, self._reward(out), packed

    def _tokens(self, context: Tensor, actions: Tensor, num_actions: Tensor) -> Tensor:
        action_tokens = self.action_emb(actions, num_actions)[:, :, None]
        return self.input_proj(context) + action_tokens + self.pos_emb


def _widened(condition: Tensor, like: Tensor) -> Tensor:
    """Give a condition, (B,) or (B, T), the number of axes of what it chooses between."""
    return condition.view(*condition.shape, *[1] * (like.dim() - condition.dim()))
