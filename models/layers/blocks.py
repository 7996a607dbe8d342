"""A residual block of convolutions."""

from __future__ import annotations

from torch import Tensor, nn


class ResBlock(nn.Module):
    """x plus two convolutions of it, after normalisation over groups of channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.GroupNorm(8, channels),
            nn.Conv2d(channels, channels, 3, 1, 1),
            nn.GELU(),
            nn.Conv2d(channels, channels, 3, 1, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)
