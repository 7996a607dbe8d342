"""The predictor of an image world model: from latents at some places to latents at others, under an
action (Garrido et al., arXiv:2403.00504).

Letters: B frames, N patches that are given, M that are predicted, D width of the latents.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from models.layers import views
from models.layers.vit import VitConfig, VitLayers, embed_positions

Conditioning = Literal["none", "sequence", "feature"]


class IwmPredictor(nn.Module):
    """From latents at some places, and an action, to latents at other places."""

    def __init__(self, config: VitConfig, width: int, grid: int, conditioning: Conditioning):
        super().__init__()
        dim, slots = config.dim, views.SLOTS
        self.grid = grid
        self.conditioning = conditioning
        self.input = nn.Linear(width, dim)
        self.mask_token = nn.Parameter(0.02 * torch.randn(dim))
        if conditioning == "sequence":
            self.slots = nn.Parameter(0.02 * torch.randn(slots, dim))
            self.weights = nn.Parameter(torch.randn(slots, dim) / slots**0.5)
        if conditioning == "feature":
            self.mix = nn.Sequential(
                nn.Linear(dim + slots, dim),
                nn.GELU(),
                nn.Linear(dim, dim),
                nn.GELU(),
                nn.Linear(dim, dim),
            )
        self.layers = VitLayers(config)
        self.out = nn.Linear(dim, width)

    def forward(self, latents: Tensor, seen: Tensor, wanted: Tensor, action: Tensor) -> Tensor:
        """Latents (B, N, D) at (B, N, 2), wanted places (B, M, 2), (B, 16) -> (B, M, D).

        Places are x and y in the source, from -1 to 1.
        """
        dim = len(self.mask_token)
        tokens = self.input(latents) + embed_positions(seen, dim, self.grid)
        masks = self.mask_token + embed_positions(wanted, dim, self.grid)
        if self.conditioning == "feature":
            each = action[:, None].expand(-1, masks.shape[1], -1)
            masks = self.mix(torch.cat([masks, each.to(masks.dtype)], -1))
        sequence = [tokens.to(masks.dtype), masks]
        if self.conditioning == "sequence":
            sequence.insert(0, action[..., None] * self.weights + self.slots)
        out = self.layers(torch.cat(sequence, 1))[:, -masks.shape[1] :]
        return self.out(out)
