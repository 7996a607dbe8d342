"""Rectangular masks over patches, the same number of patches in each (I-JEPA, arXiv:2301.08243).

Letters: B frames, h w grid, P = h * w patches.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

NUM_BLOCKS = 4
AREA = (0.15, 0.2)  # of the grid, of a block
ASPECT = (0.75, 1.5)


def draw_blocks(
    batch: int, grid: tuple[int, int], num_visible: int, num_targets: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Draw what is seen and what is predicted: (B, num_visible), (B, num_targets) int64.

    Four blocks are masked.  The counts are fixed, so that tensors have one shape: too many visible
    patches are left out at random, too few are filled up with masked ones, and no patch is both.
    """
    rows, columns = grid
    shape = (batch, NUM_BLOCKS, 1)
    area = AREA[0] + (AREA[1] - AREA[0]) * torch.rand(shape, device=device)
    low, high = (math.log(a) for a in ASPECT)
    aspect = (low + (high - low) * torch.rand(shape, device=device)).exp()
    height = ((area * aspect).sqrt() * rows).round().clamp(1, rows)
    width = ((area / aspect).sqrt() * columns).round().clamp(1, columns)
    top = (torch.rand(shape, device=device) * (rows - height + 1)).floor()
    left = (torch.rand(shape, device=device) * (columns - width + 1)).floor()
    row = torch.arange(rows, device=device).repeat_interleave(columns)
    column = torch.arange(columns, device=device).repeat(rows)
    inside = (
        (row >= top) & (row < top + height) & (column >= left) & (column < left + width)
    )  # (B, blocks, P)
    masked = inside.any(1).float()
    order = (masked + 0.5 * torch.rand_like(masked)).argsort(1)
    return order[:, :num_visible], order[:, len(row) - num_targets :]
