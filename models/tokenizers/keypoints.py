"""Keypoints learned without labels (Jakab et al., arXiv:1806.07823; Minderer et al.,
arXiv:1906.07889): a frame is encoded as K positions and decoded from Gaussians at them.

A keypoint moves with its object, so frames that look alike have near latents: a planner can follow
the distance between latents, and a dynamics model has few numbers to predict.

Letters: B frames, H W pixels, K keypoints.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from data.batch import Batch
from data.ranges import CheckedConfig, NonEmpty, Range
from models.layers.blocks import GroupNorm, ResBlock
from models.method import Losses
from models.tokenizers.tokenizer import LatentSpec, Tokenizer

CPU_FRAMES = 16  # frames whose heatmaps stay in a CPU's cache


@dataclass(frozen=True)
class KeypointsConfig(CheckedConfig):
    image_size: Annotated[tuple[int, int], Range(1, 4096)] = (64, 64)
    """Height and width of a frame, in pixels."""
    num_keypoints: Annotated[int, Range(1, 4096)] = 32
    """Keypoints of a frame; unused ones stay still, and too few misread rotations."""
    channels: Annotated[int, Range(1, 2**13)] = 48
    """Channels on the fine grid; twice as many on the coarse one."""
    stride: Annotated[int, Range(1, 128)] = 4
    """Pixels of a cell of the fine grid; twice it divides both sides of the frame."""
    heatmap_scale: Annotated[int, Range(1, 16)] = 2
    """Cells of a heatmap per cell of the fine grid, along each side; on coarse heatmaps a moving
    keypoint jumps."""
    num_res_blocks: Annotated[int, Range(0, 100)] = 2
    """Residual blocks on the coarse grid, and again in the decoder."""
    softmax_beta: Annotated[float, Range(above=0, high=10**6)] = 10.0
    """Factor on the heatmaps before their softmax: flat heatmaps all have their center of mass in
    the middle, and no gradient."""
    min_std: Annotated[float, Range(0, 2)] = 0.2
    """Standard deviation of a keypoint's x, and of its y, over a batch, below which the motion
    hinge acts; a frame spans 2.  Without it most keypoints stop moving early in training."""
    gaussian_stds: Annotated[tuple[float, ...], Range(above=0, high=10), NonEmpty()] = (0.08, 0.35)
    """Standard deviations of the decoder's Gaussians; a frame spans 2.  A narrow one is precise, a
    wide one attracts a keypoint that is far off."""

    def check(self) -> None:
        super().check()
        height, width = self.image_size
        if height % (2 * self.stride) or width % (2 * self.stride):
            raise ValueError(
                f"--image-size {height} {width} is not divisible by twice --stride "
                f"{self.stride}; choose one whose double divides both sides"
            )


class Keypoints(Tokenizer):
    """Encode a frame as K keypoints and decode it from them."""

    decoder_parts = ("decoder_in", "pos_emb", "decoder", "background")
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
        # Normalized: unbounded heatmaps collapse to one cell, which has no gradient, and keypoints
        # jump from cell to cell.
        self.heatmap_head = nn.Sequential(
            GroupNorm(8, channels),
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

    def encode(self, frames: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 -> (B, 1, 2 K) float32: x and y of each, from -1 to 1."""
        return self._locate(_invert(frames)).flatten(1)[:, None]

    def decode(self, latents: Tensor) -> Tensor:
        """(B, 1, 2 K) -> (B, 3, H, W) uint8."""
        inverted = self._render(latents.unflatten(-1, (-1, 2))[:, 0])
        return ((1 - inverted.float().clamp(0, 1)) * 255).round().to(torch.uint8)

    def loss(self, batch: Batch) -> Losses:
        """Squared error of the decoded frame, times 100, and a hinge on the keypoints' standard
        deviation over the batch (VICReg, arXiv:2105.04906, equation 1)."""
        (frames,) = batch.require("frames")
        target = _invert(frames.flatten(0, -4))
        keypoints = self._locate(target)
        reconstruction = self._render(keypoints)
        std = (keypoints.float().var(0, correction=0) + 1e-6).sqrt()
        return {
            "reconstruction": 100 * nn.functional.mse_loss(reconstruction.float(), target),
            "motion_hinge": (self.config.min_std - std).relu().mean(),
            "active_keypoints": (std.detach() > 0.05).all(-1).float().sum(),
        }

    def _locate(self, inverted: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, K, 2): the center of mass of each heatmap."""
        fine = self.fine(self.stem(inverted))
        heatmaps = self.heatmap_head(self.fuse(fine + self.coarse(fine)))
        if heatmaps.is_cpu and len(heatmaps) > CPU_FRAMES:
            return torch.cat([self._soft_argmax(part) for part in heatmaps.split(CPU_FRAMES)])
        return self._soft_argmax(heatmaps)

    def _soft_argmax(self, heatmaps: Tensor) -> Tensor:
        """(B, K, rows, columns) -> (B, K, 2): centers of mass, x and y."""
        heatmaps = heatmaps.float()
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
    """Centers of cells along one side that spans -1 to 1: (cells,)."""
    return (torch.arange(cells) + 0.5) / cells * 2 - 1


def _invert(frames: Tensor) -> Tensor:
    """uint8 -> 0 (white) to 1 (black): a white background becomes zero."""
    inverted = 1 - frames.float() / 255
    return inverted.contiguous(memory_format=torch.channels_last)
