"""Distance of states by what they show: where latents are codes, two that look alike may share
none.

Letters: M states, N codes, F numbers of a blurred image.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from models.world import World

CELLS = (4, 8, 16)  # side of a cell, for images of 64 pixels


class ImageDistance:
    """Mean squared distance of decoded images, averaged over cells of several sizes: with large
    ones what moves is near before it overlaps its goal (as in an image pyramid, Burt and Adelson
    1983)."""

    per_block = False

    def __init__(self, world: World) -> None:
        self.world = world

    def start(self, latents: Tensor) -> Tensor:
        """Latents of M states -> (M, F)."""
        images = self.world.decode_latents(latents).float() / 255
        parts = []
        for cell in CELLS:
            side = max(1, cell * images.shape[-1] // 64)
            pooled = F.avg_pool2d(images, side).flatten(1)
            parts.append(pooled / pooled.shape[1] ** 0.5)  # each size counts alike
        return torch.cat(parts, 1)

    def follow(self, tracked: Tensor, actions: Tensor, latents: Tensor) -> Tensor:
        return self.start(latents)

    def cost(self, tracked: Tensor, goal: Tensor) -> Tensor:
        return (tracked - goal).square().sum(1)
