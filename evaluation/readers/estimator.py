"""Read the simulator's state from a picture: a small network that looks for points of bodies.

It is a ruler for imagined pictures: trained on real frames of the training episodes alone, and its
own error on held-out real frames stands beside everything measured with it.

A heat map for each point, its centre of mass as the point's place (soft-argmax), and the pose that
fits a body's points best.  Letters: B frames, P points, S numbers of a state.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.layers.blocks import Residual
from pipeline.device import pick_precision

SIZE = 64  # pixels; other pictures are resized to it, so that one ruler serves every resolution
MAPS = SIZE // 2  # rows and columns of a heat map


@dataclass(frozen=True)
class Body:
    """Something that moves: where its pose is in the state, and points to find it by."""

    name: str
    place: tuple[int, int]
    """Columns of x and y in the state."""
    angle: int | None = None
    """Column of the angle in radians (from x towards y), for what has one."""
    points: tuple[tuple[float, float], ...] = ((0.0, 0.0),)
    """Points of the body about its place at angle 0, in units of the world."""
    mirrored: tuple[int, ...] = (0,)
    """Which of its points stands where each stood, once the body is seen in a mirror."""


@dataclass(frozen=True)
class Layout:
    """How a state is drawn: a square world that fills the picture, and its bodies."""

    world: float
    """Units that a picture is wide and high."""
    bodies: tuple[Body, ...]


# The two ends of the T's bar, the middle of the bar and the foot of its stem.
TEE = ((-45.0, 15.0), (45.0, 15.0), (0.0, 15.0), (0.0, 105.0))
LAYOUTS: dict[tuple[str, ...], Layout] = {
    ("agent_x", "agent_y", "block_x", "block_y", "block_angle"): Layout(
        512.0, (Body("agent", (0, 1)), Body("block", (2, 3), 4, TEE, (1, 0, 2, 3)))
    )
}


def points_of(layout: Layout, states: Tensor) -> Tensor:
    """States (B, S) -> the bodies' points as shares of the picture: (B, P, 2)."""
    found = []
    for body in layout.bodies:
        local = states.new_tensor(body.points)
        if body.angle is not None:
            cos, sin = states[:, body.angle].cos(), states[:, body.angle].sin()
            turn = torch.stack([torch.stack([cos, sin], -1), torch.stack([-sin, cos], -1)], -2)
            local = local @ turn
        found.append(states[:, None, list(body.place)] + local)
    return torch.cat(found, 1) / layout.world


def states_of(layout: Layout, points: Tensor, width: int) -> Tensor:
    """Fit the bodies to points (B, P, 2) by least squares: states (B, width)."""
    states = points.new_zeros(len(points), width)
    parts = (points * layout.world).split([len(b.points) for b in layout.bodies], 1)
    for body, seen in zip(layout.bodies, parts, strict=True):
        local = points.new_tensor(body.points)
        centre, middle = seen.mean(1), local.mean(0)
        if body.angle is not None:
            spread, arms = seen - centre[:, None], local - middle
            dot = (spread * arms).sum((1, 2))
            cross = (arms[:, 0] * spread[..., 1] - arms[:, 1] * spread[..., 0]).sum(1)
            angle = torch.atan2(cross, dot)
            cos, sin = angle.cos(), angle.sin()
            states[:, body.angle] = angle
            middle = torch.stack(
                [cos * middle[0] - sin * middle[1], sin * middle[0] + cos * middle[1]], 1
            )
        states[:, list(body.place)] = centre - middle
    return states


class PointFinder(nn.Module):
    """Frames (B, 3, SIZE, SIZE) from 0 (white) to 1 -> logits of heat maps (B, P, MAPS, MAPS)."""

    def __init__(self, points: int, width: int = 48):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 8, 4, 2)
        self.fine = Residual(width)
        self.coarse = nn.Sequential(
            nn.Conv2d(width, 2 * width, 2, 2),
            Residual(2 * width),
            Residual(2 * width),
            nn.Conv2d(2 * width, width, 1),
            nn.Upsample(scale_factor=2),
        )
        self.both = Residual(width)
        self.maps = nn.Sequential(nn.Conv2d(width, 4 * points, 1), nn.PixelShuffle(2))

    def forward(self, x: Tensor) -> Tensor:
        fine = self.fine(self.stem(x))
        return self.maps(self.both(fine + self.coarse(fine)))


def cells(device: torch.device) -> Tensor:
    """Centres of a heat map's cells along one axis, as shares of the picture: (MAPS,)."""
    return (torch.arange(MAPS, device=device) + 0.5) / MAPS


def centres(logits: Tensor) -> Tensor:
    """Soft-argmax: (B, P, MAPS, MAPS) -> (B, P, 2) as x, y shares of the picture."""
    heat = logits.float().flatten(2).softmax(-1).view(logits.shape)
    line = cells(logits.device)
    return torch.stack([(heat.sum(2) * line).sum(-1), (heat.sum(3) * line).sum(-1)], -1)


class Estimator:
    """A trained ruler: pictures -> states, and the distances between states."""

    def __init__(self, layout: Layout, width: int, device: torch.device | str = "cpu"):
        self.layout = layout
        self.width = width
        self.device = torch.device(device)
        self.bf16 = pick_precision(self.device, "auto") == "bf16"
        points = sum(len(body.points) for body in layout.bodies)
        network = PointFinder(points).to(self.device)
        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def logits(self, frames: Tensor) -> Tensor:
        """(B, 3, SIZE, SIZE) from 0 (white) to 1 -> heat maps, in bf16 where that is fast."""
        frames = frames.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            return self.network(frames)

    def prepare(self, frames: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 -> (B, 3, SIZE, SIZE) from 0 (white) to 1."""
        frames = 1 - frames.to(self.device).float() / 255
        if frames.shape[-2:] != (SIZE, SIZE):
            frames = F.interpolate(frames, (SIZE, SIZE), mode="area")
        return frames

    @torch.inference_mode()
    def read(self, frames: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 -> (B, S) float32 states."""
        parts = [
            states_of(self.layout, centres(self.logits(self.prepare(part))), self.width)
            for part in frames.split(256)
        ]
        return torch.cat(parts)

    def errors(self, truth: Tensor, read: Tensor) -> dict[str, Tensor]:
        """Two (..., S) -> BODY_px in units of the world and BODY_degrees, each (...)."""
        return distances(self.layout, truth, read)


def distances(layout: Layout, truth: Tensor, other: Tensor) -> dict[str, Tensor]:
    """How far apart two states are: BODY_px in units of the world, BODY_degrees wrapped."""
    found = {}
    for body in layout.bodies:
        place = list(body.place)
        found[f"{body.name}_px"] = (truth[..., place] - other[..., place]).norm(dim=-1)
        if body.angle is not None:
            turn = truth[..., body.angle] - other[..., body.angle]
            wrapped = torch.atan2(turn.sin(), turn.cos())
            found[f"{body.name}_degrees"] = wrapped.abs().rad2deg()
    return found
