"""A light decoder for latents that were not made to be drawn.

Letters: B frames, H W pixels, P patches, D latent width, C channels.
"""

from __future__ import annotations

import math

import torch
from einops import rearrange
from torch import Tensor, nn

from models.layers.blocks import ResBlock
from models.tokenizers.tokenizer import LatentSpec


class PixelDecoder(nn.Module):
    """(B, P, D) -> (B, 3, H, W) float, 0 to 1 where it is right."""

    def __init__(
        self, latents: LatentSpec, image_size: tuple[int, int], channels: int, num_res_blocks: int
    ) -> None:
        super().__init__()
        self.latents = latents
        # drawn on a grid of 8 x 8 or finer, whatever the latents' is
        grid = max(8, *latents.grid)
        upscale = max(math.ceil(pixels / grid) for pixels in image_size)
        # one vector says by itself where things are, a patch by where it stands
        input_layer = (
            nn.ConvTranspose2d(latents.dim, channels, grid)
            if latents.num_patches == 1
            else nn.Conv2d(latents.dim, channels, 1)
        )
        self.layers = nn.Sequential(
            input_layer,
            nn.Upsample((grid, grid), mode="bilinear"),
            *(ResBlock(channels) for _ in range(num_res_blocks)),
            nn.Conv2d(channels, 3 * upscale**2, 1),
            nn.PixelShuffle(upscale),
            nn.Upsample(image_size, mode="bilinear"),
        )
        self.background = nn.Parameter(torch.zeros(3, *image_size))

    def forward(self, latents: Tensor) -> Tensor:
        rows, columns = self.latents.grid
        x = rearrange(latents, "B (h w) D -> B D h w", h=rows, w=columns)
        return self.layers(x) + self.background
