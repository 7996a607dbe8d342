"""How the content of an image moved, from two images alone.

Letters: B pairs, H W pixels, S = 2 * REACH + 1 shifts along an axis.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

SIDE = 64  # pixels; wider images are averaged down to it
REACH = 10  # pixels of SIDE that a motion is looked for along an axis
CHANGED = 12  # change of a pixel, of 255, below which it says nothing


def image_motion(before: Tensor, after: Tensor) -> Tensor:
    """Estimate one motion of all that changes: two (B, 3, H, W) uint8 -> (B, 2), x and y as shares
    of the image's width; 0 where nothing changes.

    Block matching: the shift of the first image that is nearest to the second, over the pixels that
    change, found to a fraction of a pixel by a parabola.
    """
    first, second = (_shrunk(images.float()) for images in (before, after))
    height, width = first.shape[-2:]
    mask = ((second - first).abs().amax(1) > CHANGED).float()
    padded = F.pad(first, (REACH,) * 4, mode="replicate")
    error = torch.stack(
        [
            torch.stack(
                [
                    _error(padded[..., y : y + height, x : x + width], second, mask)
                    for x in range(2 * REACH, -1, -1)
                ],
                dim=1,
            )
            for y in range(2 * REACH, -1, -1)
        ],
        dim=1,
    )  # (B, S, S): rows are shifts down, columns shifts to the right
    size = error.shape[-1]
    best = error.flatten(1).argmin(1)
    row, column = best // size, best % size
    rows = torch.arange(len(error), device=error.device)
    x = column + _vertex(error[rows, row], column) - REACH
    y = row + _vertex(error[rows, :, column], row) - REACH
    return torch.stack([x, y], 1) / width * (mask.flatten(1).amax(1) > 0)[:, None]


def _shrunk(images: Tensor) -> Tensor:
    factor = images.shape[-1] // SIDE
    return F.avg_pool2d(images, factor) if factor > 1 else images


def _error(shifted: Tensor, second: Tensor, mask: Tensor) -> Tensor:
    return ((shifted - second).square().sum(1) * mask).sum((1, 2))


def _vertex(line: Tensor, at: Tensor) -> Tensor:
    """Where the parabola through the lowest of (B, S) and its neighbors is lowest, from there."""
    inside = at.clamp(1, line.shape[1] - 2)
    left, middle, right = (line.gather(1, (inside + step)[:, None])[:, 0] for step in (-1, 0, 1))
    curvature = left - 2 * middle + right
    offset = (left - right) / (2 * curvature.clamp(min=1e-6))
    return torch.where((inside == at) & (curvature > 0), offset.clamp(-0.5, 0.5), 0.0)
