"""Frames laid side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def make_grid(rows: Sequence[Tensor], gap: int = 2, scale: int = 2) -> np.ndarray:
    """Lay out rows of frames, (T, 3, H, W) uint8 each, as one (height, width, 3) uint8 picture."""
    row_images = []
    for frames in rows:
        padded = torch.nn.functional.pad(frames.cpu(), (0, gap, 0, gap), value=128)
        row_images.append(torch.cat(list(padded), dim=-1))
    image = torch.cat(row_images, dim=-2).permute(1, 2, 0).numpy()
    return image.repeat(scale, axis=0).repeat(scale, axis=1)
