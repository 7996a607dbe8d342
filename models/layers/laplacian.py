"""A perceptual distance without a network."""

from __future__ import annotations

from torch import Tensor, nn


def laplacian_l1(target: Tensor, reconstruction: Tensor, levels: int = 3) -> Tensor:
    """L1 between Laplacian pyramids, with less weight on finer levels (Bojanowski et al.,
    arXiv:1707.05776, section 3).

    Two (B, 3, H, W) in [-1, 1] -> ().
    """
    difference, distance = target - reconstruction, target.new_zeros(())
    for level in range(levels):
        if min(difference.shape[-2:]) < 2:
            break
        coarse = nn.functional.avg_pool2d(difference, 2)
        upsampled = nn.functional.interpolate(
            coarse, size=difference.shape[-2:], mode="bilinear", align_corners=False
        )
        # a pyramid is linear: that of a difference is the difference of the two
        distance = distance + 2.0 ** (level - levels + 1) * (difference - upsampled).abs().mean()
        difference = coarse
    return distance + difference.abs().mean()
