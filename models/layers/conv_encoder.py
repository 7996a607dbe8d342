"""An encoder of wide filters whose answers are pooled: what is where, and how it is turned.

Letters: B frames, H W pixels, F filters, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

KERNEL_SIZE = 10  # cells along each side of a filter, of half the frame's pixels: a thing fits in


class ConvEncoder(nn.Module):
    """(B, 3, H, W) ink -> (B, D).

    Objectives without a picture drawn or a label given find what the features say already, and
    keep it from then on.  How a thing is turned can be read off the pooled answers of a few hundred
    random filters as wide as the thing (linear probe r about .8 on Push-T), hardly off patches and
    small filters, however many lie above each other (.1 to .3).
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
        flat = features.flatten(2).float()
        rms = (flat.square().mean(2) + 1e-6).sqrt()
        # amax's gradient is shared among equals, and compiled (torch 2.13) there may be none: NaN
        pooled = torch.cat([flat.mean(2), rms, flat.max(2).values], dim=1)
        return self.out(torch.cat([self.norm(pooled), self.spatial(features).flatten(1)], dim=1))
