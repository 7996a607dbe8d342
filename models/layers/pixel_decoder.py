"""A light decoder for latents that were trained without one.

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
    """(B, P, D) -> (B, 3, H, W) float, about 0 to 1."""

    def __init__(
        self, latents: LatentSpec, image_size: tuple[int, int], channels: int, num_res_blocks: int
    ) -> None:
        super().__init__()
        self.latents = latents
        # a grid of at least 8 x 8, whatever the latents' is
        grid = max(8, *latents.grid)
        upscale = max(math.ceil(pixels / grid) for pixels in image_size)
        # a single vector has no position; patches have theirs
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
