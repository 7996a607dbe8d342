"""Distance of states by what they show: where latents are codes, two that look alike may share
none.

Letters: M states, N codes, C cells along a side, F numbers of a blurred image.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.world import World

WIDTH = 0.1  # standard deviation of the blur, as a share of each side
CELLS = 16  # along each side


class ImageDistance:
    """Mean squared distance of decoded images that are blurred by a wide Gaussian: what moves is
    then nearer long before it overlaps its goal."""

    per_block = False

    def __init__(self, world: World) -> None:
        self.world = world
        height, width = world.image_size
        self.rows, self.columns = (_blur(n).to(world.device) for n in (height, width))

    def start(self, latents: Tensor) -> Tensor:
        """Latents of M states -> (M, F)."""
        images = self.world.decode_latents(latents).float() / 255
        return torch.einsum("CH,MRHW,DW->MRCD", self.rows, images, self.columns).flatten(1) / CELLS

    def follow(self, tracked: Tensor, actions: Tensor, latents: Tensor) -> Tensor:
        return self.start(latents)

    def cost(self, tracked: Tensor, goal: Tensor) -> Tensor:
        return (tracked - goal).square().sum(1)


def _blur(pixels: int) -> Tensor:
    """Weights of the pixels along a side in each cell: (C, pixels)."""
    centers = (torch.arange(CELLS) + 0.5) / CELLS
    places = (torch.arange(pixels) + 0.5) / pixels
    weights = torch.exp(-((centers[:, None] - places) ** 2) / (2 * WIDTH**2))
    return weights / weights.sum(1, keepdim=True)
