"""A vision transformer over the answers of filters as wide as an object, pooled in each patch.

A self-supervised objective keeps what the features hold at initialization.  An object's orientation
is linear in the pooled answers of wide filters, and hardly in the pixels of a patch
(models/layers/conv_encoder.py).

Letters: B frames, H W pixels, P patches, F filters, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, max_pool2d

from models.layers.vit import VitConfig, VitLayers, embed_positions, patch_positions

KERNEL_SIZE, STRIDE = 10, 2  # of a filter, at half the frame's resolution: an object fits in
PIXELS = 2 * STRIDE  # of the frame, from one answer of a filter to the next
POSITION_GAIN = 0.25  # a patch's content, not its place, shall be most of its latents


class WideEncoder(nn.Module):
    """Frames, white as 0, to a vector per patch."""

    positions: Tensor
    position_emb: Tensor

    def __init__(
        self, config: VitConfig, num_filters: int, image_size: tuple[int, int], patch_size: int
    ) -> None:
        super().__init__()
        self.pool_size = patch_size // PIXELS
        padding = KERNEL_SIZE // 2 - 1
        self.conv = nn.Conv2d(3, num_filters, KERNEL_SIZE, STRIDE, padding, bias=False)
        nn.init.kaiming_normal_(self.conv.weight)
        self.conv.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        # what all frames have in common would be most of a token, and a mean less than a maximum
        self.norm = nn.BatchNorm1d(2 * num_filters, affine=False, momentum=0.05)
        self.proj = nn.Linear(2 * num_filters, config.dim)
        rows, columns = (side // patch_size for side in image_size)
        positions = patch_positions(rows, columns)
        embedded = POSITION_GAIN * embed_positions(positions, config.dim, max(rows, columns))
        self.register_buffer("positions", positions, persistent=False)
        self.register_buffer("position_emb", embedded, persistent=False)
        self.layers = VitLayers(config)

    def forward(self, inverted: Tensor) -> Tensor:
        """(B, 3, H, W) from 0, white, to 1 -> (B, P, D)."""
        halved = avg_pool2d(inverted, 2).contiguous(memory_format=torch.channels_last)
        answers = self.conv(halved).relu_()
        pooled = [pool(answers, self.pool_size) for pool in (avg_pool2d, max_pool2d)]
        flat = torch.cat(pooled, 1).permute(0, 2, 3, 1).flatten(0, 2)  # (B P, 2 F), in one piece
        tokens = self.proj(self.norm(flat.float())).unflatten(0, (len(inverted), -1))
        return self.layers(tokens + self.position_emb)
