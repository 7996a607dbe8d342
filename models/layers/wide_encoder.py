"""Answers of random filters as wide as an object, pooled in each patch: their main components.

An object's place and orientation are nearly linear in the pooled answers of wide filters, and
hardly in the pixels of a patch (models/layers/conv_encoder.py).  The filters stay as they are
drawn; what is learned is which D directions of 2 F answers say most of them.

Letters: B frames, H W pixels, P patches, F filters, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, linear, max_pool2d

from models.layers.vit import patch_positions

KERNEL_SIZE, STRIDE = 10, 2  # of a filter, at half the frame's resolution: an object fits in
PIXELS = 2 * STRIDE  # of the frame, from one answer of a filter to the next


class WideEncoder(nn.Module):
    """Frames, white as 0, to a vector per patch."""

    positions: Tensor

    def __init__(
        self, dim: int, num_filters: int, image_size: tuple[int, int], patch_size: int
    ) -> None:
        super().__init__()
        self.pool_size = patch_size // PIXELS
        padding = KERNEL_SIZE // 2 - 1
        self.conv = nn.Conv2d(3, num_filters, KERNEL_SIZE, STRIDE, padding, bias=False)
        nn.init.kaiming_normal_(self.conv.weight)
        self.conv.requires_grad_(False)
        self.conv.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        # what frames have in common would be most of the answers, and means less than maxima
        self.norm = nn.BatchNorm1d(2 * num_filters, affine=False, momentum=0.05)
        self.components = nn.Parameter(nn.init.orthogonal_(torch.empty(dim, 2 * num_filters)))
        self.scale = (dim / (2 * num_filters)) ** 0.5  # to variances of about 1
        rows, columns = (side // patch_size for side in image_size)
        self.register_buffer("positions", patch_positions(rows, columns), persistent=False)

    def forward(self, inverted: Tensor) -> Tensor:
        """(B, 3, H, W) from 0, white, to 1 -> (B, P, D)."""
        return self.project(self.answers(inverted))

    def answers(self, inverted: Tensor) -> Tensor:
        """Means and maxima over each patch, normalized: (B, 3, H, W) -> (B, P, 2 F)."""
        halved = avg_pool2d(inverted, 2).contiguous(memory_format=torch.channels_last)
        answers = self.conv(halved).relu_()
        pooled = [pool(answers, self.pool_size) for pool in (avg_pool2d, max_pool2d)]
        flat = torch.cat(pooled, 1).permute(0, 2, 3, 1).flatten(0, 2)  # (B P, 2 F), in one piece
        return self.norm(flat.float()).unflatten(0, (len(inverted), -1))

    def project(self, answers: Tensor) -> Tensor:
        """(B, P, 2 F) -> (B, P, D)."""
        return self.scale * linear(answers, self.components)

    def lost(self, answers: Tensor, latents: Tensor) -> Tensor:
        """Share of the answers' variance that the latents do not say: (B, P, 2 F), (B, P, D) -> ().

        Least where the components span the principal ones (Baldi and Hornik,
        doi:10.1016/0893-6080(89)90014-2).
        """
        found = linear(latents / self.scale, self.components.T).float()
        return (found - answers).square().mean() / answers.square().mean().clamp(min=1e-8)
