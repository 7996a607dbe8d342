"""Residual blocks of convolutions.

Letters: B frames, C channels, h w grid.
"""

from __future__ import annotations

from einops import rearrange
from torch import Tensor, nn


class GroupNorm(nn.GroupNorm):
    """As PyTorch's, which on a CPU takes up to four times longer where channels are last."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.contiguous() if input.is_cpu else input)


class ResBlock(nn.Module):
    """Two convolutions after a group norm, around a skip."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            GroupNorm(8, channels),
            nn.Conv2d(channels, channels, 3, 1, 1),
            nn.GELU(),
            nn.Conv2d(channels, channels, 3, 1, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class ConvNextBlock(nn.Module):
    """A depthwise convolution and a channel MLP (Liu et al., arXiv:2201.03545)."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.depthwise: nn.Module = nn.Identity()
        if kernel > 1:
            self.depthwise = nn.Conv2d(channels, channels, kernel, 1, kernel // 2, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.expand = nn.Linear(channels, 2 * channels)
        self.contract = nn.Linear(2 * channels, channels)
        nn.init.zeros_(self.contract.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        y = self.norm(rearrange(self.depthwise(x), "B C h w -> B h w C"))
        y = self.contract(nn.functional.gelu(self.expand(y)))
        return x + rearrange(y, "B h w C -> B C h w")


class ResNetBlock(nn.Module):
    """Two convolutions around a skip (He et al., arXiv:1603.05027)."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()

        def half() -> list[nn.Module]:
            norm = GroupNorm(8, channels) if kernel > 1 else PixelNorm(channels)
            return [norm, nn.SiLU(), nn.Conv2d(channels, channels, kernel, padding=kernel // 2)]

        self.layers = nn.Sequential(*half(), *half())
        nn.init.zeros_(self.layers[-1].weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class PixelNorm(nn.Module):
    """Layer norm over channels; a group norm would mix patches."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return rearrange(self.norm(rearrange(x, "B C h w -> B h w C")), "B h w C -> B C h w")
