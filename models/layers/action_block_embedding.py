"""Up to `frameskip` consecutive actions as one vector.

Letters: A action numbers, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from data.actions import ActionSpec
from models.layers.embeddings import ActionEmbedding


class ActionBlockEmbedding(nn.Module):
    """One vector for up to `block_size` consecutive actions, each in a slot of its own."""

    slots: Tensor

    def __init__(self, spec: ActionSpec, block_size: int, dim: int) -> None:
        super().__init__()
        self.action_emb = ActionEmbedding(spec, dim)
        self.mix = nn.Linear(block_size * dim, dim)
        self.count_emb = nn.Embedding(block_size, dim)
        nn.init.normal_(self.count_emb.weight, std=0.02)
        self.register_buffer("slots", torch.arange(block_size), persistent=False)

    def forward(self, actions: Tensor, num_actions: Tensor) -> Tensor:
        """(..., block_size, A) or (..., block_size) codes, how many are given (...) -> (..., D)."""
        mask = self.slots < num_actions[..., None]
        embedded = self.action_emb(actions) * mask[..., None]
        return self.mix(nn.functional.gelu(embedded).flatten(-2)) + self.count_emb(num_actions - 1)
