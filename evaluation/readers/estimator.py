"""A state estimator: the simulator's state from an image, by keypoints of its bodies.

It measures model rollouts.  It is trained on real frames of training episodes only, and its error
on held-out real frames is reported next to everything measured with it.

Each keypoint has a heat map, whose center of mass is its position (soft-argmax); a body's pose is
the one that fits its keypoints best.  Letters: B frames, P keypoints, S numbers of a state.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.layers.blocks import ResBlock
from pipeline.device import pick_precision

IMAGE_SIZE = 64  # pixels; other images are resized, so one estimator serves every resolution
HEATMAP_SIZE = IMAGE_SIZE // 2  # rows and columns of a heat map


@dataclass(frozen=True)
class Body:
    """Something that moves: the columns of its pose in the state, and its keypoints."""

    name: str
    position: tuple[int, int]
    """Columns of x and y in the state."""
    angle: int | None = None
    """Column of the angle in radians (from x towards y), if it has one."""
    keypoints: tuple[tuple[float, float], ...] = ((0.0, 0.0),)
    """Keypoints relative to the body's position at angle 0, in units of the world."""
    flip_index: tuple[int, ...] = (0,)
    """Index of the keypoint that takes the place of each when the image is mirrored."""


@dataclass(frozen=True)
class Layout:
    """How a state is drawn: a square world that fills the image, and its bodies."""

    world_size: float
    """Width and height of the image, in units of the world."""
    bodies: tuple[Body, ...]


# The two ends of the T's bar, the middle of the bar and the foot of its stem.
TEE = ((-45.0, 15.0), (45.0, 15.0), (0.0, 15.0), (0.0, 105.0))
LAYOUTS: dict[tuple[str, ...], Layout] = {
    ("agent_x", "agent_y", "block_x", "block_y", "block_angle"): Layout(
        512.0, (Body("agent", (0, 1)), Body("block", (2, 3), 4, TEE, (1, 0, 2, 3)))
    )
}


def state_to_keypoints(layout: Layout, states: Tensor) -> Tensor:
    """Project states to keypoints, as shares of the image: (B, S) -> (B, P, 2)."""
    keypoints = []
    for body in layout.bodies:
        local = states.new_tensor(body.keypoints)
        if body.angle is not None:
            cos, sin = states[:, body.angle].cos(), states[:, body.angle].sin()
            rotation = torch.stack([torch.stack([cos, sin], -1), torch.stack([-sin, cos], -1)], -2)
            local = local @ rotation
        keypoints.append(states[:, None, list(body.position)] + local)
    return torch.cat(keypoints, 1) / layout.world_size


def keypoints_to_state(layout: Layout, keypoints: Tensor, state_dim: int) -> Tensor:
    """Fit the bodies' poses to keypoints by least squares: (B, P, 2) -> (B, S)."""
    states = keypoints.new_zeros(len(keypoints), state_dim)
    parts = (keypoints * layout.world_size).split([len(b.keypoints) for b in layout.bodies], 1)
    for body, observed in zip(layout.bodies, parts, strict=True):
        local = keypoints.new_tensor(body.keypoints)
        center, local_center = observed.mean(1), local.mean(0)
        if body.angle is not None:
            offsets, local_offsets = observed - center[:, None], local - local_center
            dot = (offsets * local_offsets).sum((1, 2))
            cross = (
                local_offsets[:, 0] * offsets[..., 1] - local_offsets[:, 1] * offsets[..., 0]
            ).sum(1)
            angle = torch.atan2(cross, dot)
            cos, sin = angle.cos(), angle.sin()
            states[:, body.angle] = angle
            local_center = torch.stack(
                [
                    cos * local_center[0] - sin * local_center[1],
                    sin * local_center[0] + cos * local_center[1],
                ],
                1,
            )
        states[:, list(body.position)] = center - local_center
    return states


class KeypointNet(nn.Module):
    """Frames (B, 3, IMAGE_SIZE, IMAGE_SIZE) from 0 (white) to 1 -> logits of heat maps
    (B, P, HEATMAP_SIZE, HEATMAP_SIZE)."""

    def __init__(self, num_keypoints: int, dim: int = 48):
        super().__init__()
        self.stem = nn.Conv2d(3, dim, 8, 4, 2)
        self.fine = ResBlock(dim)
        self.coarse = nn.Sequential(
            nn.Conv2d(dim, 2 * dim, 2, 2),
            ResBlock(2 * dim),
            ResBlock(2 * dim),
            nn.Conv2d(2 * dim, dim, 1),
            nn.Upsample(scale_factor=2),
        )
        self.fuse = ResBlock(dim)
        self.heatmap_head = nn.Sequential(nn.Conv2d(dim, 4 * num_keypoints, 1), nn.PixelShuffle(2))

    def forward(self, x: Tensor) -> Tensor:
        fine = self.fine(self.stem(x))
        return self.heatmap_head(self.fuse(fine + self.coarse(fine)))


def cell_centers(device: torch.device) -> Tensor:
    """Give the centers of a heat map's cells along one axis, as shares of the image."""
    return (torch.arange(HEATMAP_SIZE, device=device) + 0.5) / HEATMAP_SIZE


def soft_argmax(logits: Tensor) -> Tensor:
    """Average positions over each heat map's softmax: (B, P, rows, columns) -> (B, P, 2), x and y
    as shares of the image."""
    probs = logits.float().flatten(2).softmax(-1).view(logits.shape)
    positions = cell_centers(logits.device)
    return torch.stack([(probs.sum(2) * positions).sum(-1), (probs.sum(3) * positions).sum(-1)], -1)


class StateEstimator:
    """Images -> states, and the distances between states."""

    def __init__(self, layout: Layout, state_dim: int, device: torch.device | str = "cpu"):
        self.layout = layout
        self.state_dim = state_dim
        self.device = torch.device(device)
        self.bf16 = pick_precision(self.device, "auto") == "bf16"
        num_keypoints = sum(len(body.keypoints) for body in layout.bodies)
        network = KeypointNet(num_keypoints).to(self.device)
        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def logits(self, frames: Tensor) -> Tensor:
        """Give the heat maps of preprocessed frames, in bf16 where that is fast."""
        frames = frames.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            return self.network(frames)

    def preprocess(self, frames: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 -> (B, 3, IMAGE_SIZE, IMAGE_SIZE) from 0 (white) to 1."""
        frames = 1 - frames.to(self.device).float() / 255
        if frames.shape[-2:] != (IMAGE_SIZE, IMAGE_SIZE):
            frames = F.interpolate(frames, (IMAGE_SIZE, IMAGE_SIZE), mode="area")
        return frames

    @torch.inference_mode()
    def predict(self, frames: Tensor) -> Tensor:
        """Estimate states: (B, 3, H, W) uint8 -> (B, S) float32."""
        states = [
            keypoints_to_state(
                self.layout, soft_argmax(self.logits(self.preprocess(part))), self.state_dim
            )
            for part in frames.split(256)
        ]
        return torch.cat(states)

    def errors(self, truth: Tensor, predicted: Tensor) -> dict[str, Tensor]:
        """Give the distances between two (..., S): see `distances`."""
        return distances(self.layout, truth, predicted)


def distances(layout: Layout, truth: Tensor, predicted: Tensor) -> dict[str, Tensor]:
    """Give the distances between two (..., S): BODY_px in units of the world, and BODY_degrees,
    wrapped; each (...)."""
    errors = {}
    for body in layout.bodies:
        columns = list(body.position)
        errors[f"{body.name}_px"] = (truth[..., columns] - predicted[..., columns]).norm(dim=-1)
        if body.angle is not None:
            angle = truth[..., body.angle] - predicted[..., body.angle]
            wrapped = torch.atan2(angle.sin(), angle.cos())
            errors[f"{body.name}_degrees"] = wrapped.abs().rad2deg()
    return errors
