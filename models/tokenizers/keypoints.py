"""Keypoints learnt from pictures alone (Jakab et al., arXiv:1806.07823; Minderer et al.,
arXiv:1906.07889): a frame is a few places, and is drawn from bumps at those places.

A place moves as what stands there moves, so latents of what is near are near: a distance between
latents is one that a planner can follow, and dynamics have a handful of numbers to foretell.

Letters: B frames, H W pixels, h w cells of a map, K keypoints, C channels, S widths of bumps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.layers.blocks import ResBlock
from models.tokenizers.tokenizer import LatentSpec


@dataclass(frozen=True)
class KeypointsConfig:
    image_size: tuple[int, int] = (64, 64)
    """Height and width of a frame, in pixels."""
    num_keypoints: int = 32
    """Some are not needed and stay where they are; too few, and what turns is read wrongly."""
    channels: int = 48
    """Channels on the maps' grid; twice as many on the coarser one."""
    stride: int = 4
    """Pixels between the centres of a grid's cells; twice it divides both sides of the frame."""
    heatmap_scale: int = 2
    """Cells of a keypoint's map for each cell of the grid, along each side: a place that moves
    leaves the one and enters the next, and on coarse maps it jumps."""
    num_res_blocks: int = 2
    """Residual blocks on the coarse grid, and again in the decoder."""
    softmax_beta: float = 10.0
    """Factor on the maps before their softmax: flat maps all have their centre in the middle, and
    learn nothing from there."""
    min_std: float = 0.2
    """Standard deviation of a keypoint's x, and of its y, over a batch (the picture spans 2): one
    that moves less is pushed. Left alone most rest after thirty steps, and never move again."""
    gaussian_stds: tuple[float, ...] = (0.08, 0.35)
    """Widths of the bumps that stand for a place in the decoder; the picture spans 2. A narrow one
    says where exactly, a wide one draws a keypoint that is far off."""

    def __post_init__(self) -> None:
        height, width = self.image_size
        if height % (2 * self.stride) or width % (2 * self.stride):
            raise ValueError(
                f"frames of {height} x {width} pixels do not divide into coarse cells of "
                f"{2 * self.stride}; choose a --model.cell whose double divides both sides"
            )


class Keypoints(nn.Module):
    """Turn a frame into the places of K keypoints and draw it back."""

    clip_length = 1
    rows: Tensor
    columns: Tensor
    fine_rows: Tensor
    fine_columns: Tensor

    def __init__(self, config: KeypointsConfig) -> None:
        super().__init__()
        self.config = config
        self.image_size = config.image_size
        self.latents = LatentSpec("continuous", (1, 1), 2 * config.num_keypoints, is_xy=True)
        channels = config.channels
        height, width = (side // config.stride for side in config.image_size)
        self.stem = nn.Conv2d(3, channels, 2 * config.stride, config.stride, config.stride // 2)
        self.fine = ResBlock(channels)
        self.coarse = nn.Sequential(
            nn.Conv2d(channels, 2 * channels, 2, 2),
            *(ResBlock(2 * channels) for _ in range(config.num_res_blocks)),
            nn.Conv2d(2 * channels, channels, 1),
            nn.Upsample(scale_factor=2),
        )
        self.fuse = ResBlock(channels)
        # Normalised: maps that grow without bound end as one cell, which gives no gradient, and
        # their places leap from cell to cell.
        self.heatmap_head = nn.Sequential(
            nn.GroupNorm(8, channels),
            nn.Conv2d(channels, config.heatmap_scale**2 * config.num_keypoints, 1),
            nn.PixelShuffle(config.heatmap_scale),
        )
        for scale, name in ((1, ""), (config.heatmap_scale, "fine_")):
            self.register_buffer(f"{name}rows", _cell_centers(scale * height), persistent=False)
            self.register_buffer(f"{name}columns", _cell_centers(scale * width), persistent=False)

        self.decoder_in = nn.Conv2d(
            len(config.gaussian_stds) * config.num_keypoints, channels, 3, 1, 1
        )
        self.pos_emb = nn.Parameter(torch.zeros(channels, height, width))
        self.decoder = nn.Sequential(
            *(ResBlock(channels) for _ in range(config.num_res_blocks)),
            nn.Conv2d(channels, 3 * config.stride**2, 1),
            nn.PixelShuffle(config.stride),
        )
        self.background = nn.Parameter(torch.zeros(3, *config.image_size))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def codebooks(self) -> Tensor:
        return torch.zeros(0)

    def encode(self, frames: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 -> (B, 1, 2 K) float32: x and y of each, from -1 to 1."""
        return self._locate(_invert(frames)).flatten(1)[:, None]

    def decode(self, latents: Tensor) -> Tensor:
        """(B, 1, 2 K) -> (B, 3, H, W) uint8."""
        inverted = self._render(latents.unflatten(-1, (-1, 2))[:, 0])
        return ((1 - inverted.float().clamp(0, 1)) * 255).round().to(torch.uint8)

    def loss(self, frames: Tensor, actions: Tensor | None = None) -> dict[str, Tensor]:
        """Squared error of the frame drawn from its own keypoints; `resting`, by how much they move
        less over the batch than they should (a hinge, as in VICReg, arXiv:2105.04906, eq. 1)."""
        target = _invert(frames.flatten(0, -4))
        keypoints = self._locate(target)
        reconstruction = self._render(keypoints)
        std = (keypoints.float().var(0, correction=0) + 1e-6).sqrt()
        return {
            "reconstruction": 100 * nn.functional.mse_loss(reconstruction.float(), target),
            "resting": (self.config.min_std - std).relu().mean(),
            "moving": (std.detach() > 0.05).all(-1).float().sum(),
        }

    def _locate(self, inverted: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, K, 2): the centre of mass of each map (soft-argmax)."""
        fine = self.fine(self.stem(inverted))
        heatmaps = self.heatmap_head(self.fuse(fine + self.coarse(fine))).float()
        probs = (self.config.softmax_beta * heatmaps).flatten(2).softmax(-1).view(heatmaps.shape)
        x = (probs.sum(2) * self.fine_columns).sum(-1)
        y = (probs.sum(3) * self.fine_rows).sum(-1)
        return torch.stack([x, y], dim=-1)

    def _render(self, keypoints: Tensor) -> Tensor:
        """(B, K, 2) -> (B, 3, H, W)."""
        gaussians = []
        for std in self.config.gaussian_stds:
            across = torch.exp(-((self.columns - keypoints[..., :1]) ** 2) / (2 * std**2))
            down = torch.exp(-((self.rows - keypoints[..., 1:]) ** 2) / (2 * std**2))
            gaussians.append(down[..., :, None] * across[..., None, :])
        heatmaps = torch.cat(gaussians, dim=1).contiguous(memory_format=torch.channels_last)
        return self.decoder(self.decoder_in(heatmaps) + self.pos_emb) + self.background


def _cell_centers(cells: int) -> Tensor:
    """Centres of cells along one side that spans -1 to 1: (cells,)."""
    return (torch.arange(cells) + 0.5) / cells * 2 - 1


def _invert(frames: Tensor) -> Tensor:
    """uint8 -> 0 (white) to 1: what is drawn, on a background of nothing."""
    inverted = 1 - frames.float() / 255
    return inverted.contiguous(memory_format=torch.channels_last)
