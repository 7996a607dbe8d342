"""A convolutional encoder with wide filters and pooled features.

Letters: B frames, H W pixels, F filters, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

KERNEL_SIZE = 10  # side of a filter at half the frame's resolution: an object fits in


class ConvEncoder(nn.Module):
    """(B, 3, H, W) inverted frames -> (B, D).

    A self-supervised objective keeps what the features contain at initialization.  An object's
    orientation is linear in the pooled features of random filters as wide as the object, and hardly
    in those of patches or small filters.
    """

    def __init__(self, num_filters: int, dim: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.AvgPool2d(2),
            nn.Conv2d(3, num_filters, KERNEL_SIZE, 2, KERNEL_SIZE // 2 - 1),
            nn.ReLU(),
        )
        self.norm = nn.BatchNorm1d(3 * num_filters, momentum=0.05)
        channels, grid_size = 64, 4
        self.spatial = nn.Sequential(
            nn.Conv2d(num_filters, channels, 3, 2, 1),
            nn.GroupNorm(8, channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, 2, 1),
            nn.GroupNorm(8, channels),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(grid_size),
            nn.Flatten(),
        )
        self.out = nn.Linear(3 * num_filters + channels * grid_size**2, dim)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, inverted: Tensor) -> Tensor:
        features = self.conv(inverted.contiguous(memory_format=torch.channels_last))
        pooled = self.norm(pool(features))
        return self.out(torch.cat([pooled, self.spatial(features).flatten(1)], dim=1))


def pool(features: Tensor) -> Tensor:
    """(B, F, H, W) -> (B, 3F): the mean, root mean square and maximum of each filter."""
    flat = features.flatten(2).float()
    rms = (flat.square().mean(2) + 1e-6).sqrt()
    # not amax: its gradient is divided among equals, and NaN when compiled (torch 2.13)
    return torch.cat([flat.mean(2), rms, flat.max(2).values], dim=1)
