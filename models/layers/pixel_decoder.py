"""A light decoder for latents that were not made to be drawn.

Letters: B frames, H W pixels, P patches, D latent width, C channels.
"""

from __future__ import annotations

import math

import torch
from einops import rearrange
from torch import Tensor, nn

from models.layers.blocks import Residual
from models.tokenizers.tokenizer import Latents


class Look(nn.Module):
    """(B, P, D) -> (B, 3, H, W) float, 0 to 1 where it is right."""

    def __init__(
        self, latents: Latents, image_size: tuple[int, int], channels: int, depth: int
    ) -> None:
        super().__init__()
        self.latents = latents
        # drawn on a grid of 8 x 8 or finer, whatever the latents' is
        grid = max(8, *latents.grid)
        side = max(math.ceil(pixels / grid) for pixels in image_size)
        # one vector says by itself where things are, a patch by where it stands
        first = (
            nn.ConvTranspose2d(latents.width, channels, grid)
            if latents.patches == 1
            else nn.Conv2d(latents.width, channels, 1)
        )
        self.layers = nn.Sequential(
            first,
            nn.Upsample((grid, grid), mode="bilinear"),
            *(Residual(channels) for _ in range(depth)),
            nn.Conv2d(channels, 3 * side**2, 1),
            nn.PixelShuffle(side),
            nn.Upsample(image_size, mode="bilinear"),
        )
        self.background = nn.Parameter(torch.zeros(3, *image_size))

    def forward(self, latents: Tensor) -> Tensor:
        rows, columns = self.latents.grid
        x = rearrange(latents, "B (h w) D -> B D h w", h=rows, w=columns)
        return self.layers(x) + self.background
