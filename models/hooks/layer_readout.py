"""Frames from what layers give: a decoder that looks into a model and leaves it as it is.

Letters: n frames, K tokens of a frame, D width of a layer, H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from models.layers.pixel_decoder import PixelDecoder
from models.tokenizers.tokenizer import LatentSpec


class LayerReadout(nn.Module):
    """Draw frames from the outputs of chosen layers, put next to each other.

    Nothing reaches the layers' weights from detached outputs, which collectors give by default;
    with the graph kept, its loss is one of the model's.
    """

    def __init__(
        self,
        outputs: Mapping[str, Tensor],
        grid: tuple[int, int],
        image_size: tuple[int, int],
        channels: int = 64,
        num_res_blocks: int = 1,
    ) -> None:
        """outputs: of some frames, (n, K, D) each.  grid: rows and columns of a frame's latents; as
        many tokens draw their places, and others draw the whole together."""
        super().__init__()
        self.paths = tuple(outputs)
        _, tokens, width = self._joined(outputs).shape
        self.by_patch = tokens == grid[0] * grid[1]
        spec = LatentSpec("continuous", (1, 1), tokens * width)
        if self.by_patch:
            spec = LatentSpec("continuous", grid, width)
        self.norm = nn.LayerNorm(width)
        with torch.random.fork_rng(devices=[]):  # what is drawn of the model stays the same
            self.decoder = PixelDecoder(spec, image_size, channels, num_res_blocks)

    def forward(self, outputs: Mapping[str, Tensor]) -> Tensor:
        """Outputs by path, (n, K, D) -> (n, 3, H, W) float, about 0 to 1."""
        x = self.norm(self._joined(outputs))
        return self.decoder(x if self.by_patch else x.flatten(1)[:, None])

    def loss(self, outputs: Mapping[str, Tensor], frames: Tensor) -> Tensor:
        """Squared error of the frames (n, 3, H, W) uint8, times 100."""
        return 100 * nn.functional.mse_loss(self(outputs), frames.float() / 255)

    def draw(self, outputs: Mapping[str, Tensor]) -> Tensor:
        """Outputs by path, (n, K, D) -> (n, 3, H, W) uint8."""
        return (self(outputs).clamp(0, 1) * 255).round().to(torch.uint8)

    def _joined(self, outputs: Mapping[str, Tensor]) -> Tensor:
        parts = [outputs[path].float() for path in self.paths]
        shapes = {part.shape[:2] for part in parts}
        if len(shapes) > 1:
            given = ", ".join(f"{path}: {tuple(outputs[path].shape)}" for path in self.paths)
            raise ValueError(f"layers give {given}; a readout takes layers with the same tokens")
        return torch.cat(parts, -1)
