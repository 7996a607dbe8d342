"""Worlds whose metrics are known: a dot that moves to where its action points.

The frame is a function of the last action alone, so the oracle predicts it exactly.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from data.actions import ActionSpec

DOT = ActionSpec("continuous", ("x", "y"), (0.0, 0.0), (1.0, 1.0), "share of the image", True)


def draw(positions: Tensor, size: int = 16) -> Tensor:
    """(..., 2) from 0 to 1 -> (..., 3, size, size) uint8 with a soft dot at each position."""
    line = (torch.arange(size) + 0.5) / size
    x, y = positions[..., 0, None, None], positions[..., 1, None, None]
    near = torch.exp(-((line[None, :] - x) ** 2 + (line[:, None] - y) ** 2) / 0.02)
    return (near * 255).to(torch.uint8).unsqueeze(-3).expand(*positions.shape[:-1], 3, size, size)


@dataclass
class FakeClip:
    frames: Tensor
    actions: Tensor
    states: Tensor | None = None


class DotClips:
    """As data.clips.Clips: clips of episodes in which the dot moves smoothly."""

    def __init__(self, episodes: int = 6, length: int = 30, clip_length: int = 20, seed: int = 0):
        rng = np.random.default_rng(seed)
        self.clip_length = clip_length
        steps = rng.normal(0, 0.08, (episodes, length, 2)).cumsum(1)
        self.positions = torch.tensor(0.5 + 0.4 * np.sin(steps * 3), dtype=torch.float32)
        self.clips_per_episode = length - clip_length + 1

    def __len__(self) -> int:
        return len(self.positions) * self.clips_per_episode

    def episode_of(self, index: int) -> int:
        return index // self.clips_per_episode

    def batch(self, indices: np.ndarray) -> FakeClip:
        rows = [divmod(int(i), self.clips_per_episode) for i in indices]
        positions = torch.stack([self.positions[e, s : s + self.clip_length] for e, s in rows])
        actions = torch.cat([positions[:, 1:], positions[:, -1:]], 1)
        return FakeClip(draw(positions), actions, positions)


class FrameCodec(Protocol):
    """The part of a tokenizer that these worlds need."""

    def encode(self, frames: Tensor) -> Tensor: ...

    def decode(self, latents: Tensor) -> Tensor: ...


class Identity:
    """A lossless tokenizer."""

    def encode(self, frames: Tensor) -> Tensor:
        return frames.flatten(1).long()

    def decode(self, latents: Tensor) -> Tensor:
        size = int((latents.shape[1] / 3) ** 0.5)
        return latents.view(-1, 3, size, size).to(torch.uint8)


@dataclass
class DotState:
    latents: Tensor


class CopyWorld:
    """Predicts no change."""

    actions = DOT
    context = 3
    device = torch.device("cpu")

    def __init__(self, tokenizer: FrameCodec | None = None):
        self.tokenizer = tokenizer or Identity()

    def reset(self, frames: Tensor, actions: Tensor) -> DotState:
        assert frames.shape[1] == actions.shape[1] + 1
        return DotState(self.tokenizer.encode(frames[:, -1]))

    def step(self, state: DotState, action: Tensor) -> DotState:
        return replace(state)

    def observe(self, state: DotState, action: Tensor, frames: Tensor) -> DotState:
        return DotState(self.tokenizer.encode(frames))

    def decode(self, state: DotState) -> Tensor:
        return self.tokenizer.decode(state.latents)

    def encode(self, frames: Tensor) -> Tensor:
        return self.tokenizer.encode(frames)

    def embed(self, frames: Tensor) -> Tensor:
        return self.encode(frames)

    def decode_latents(self, latents: Tensor) -> Tensor:
        return self.tokenizer.decode(latents)

    def reconstruct(self, frames: Tensor) -> Tensor:
        return self.decode_latents(self.encode(frames))


class OracleWorld(CopyWorld):
    """Predicts the true future: the dot moves to where the action points."""

    def step(self, state: DotState, action: Tensor) -> DotState:
        return DotState(self.tokenizer.encode(draw(action)))


class Centroid:
    """Estimates the position of the dot from an image: a state estimator for the fake world."""

    def predict(self, frames: Tensor) -> Tensor:
        light = frames[:, 0].float()
        line = (torch.arange(light.shape[-1]) + 0.5) / light.shape[-1]
        total = light.sum((1, 2))
        x = (light.sum(1) * line).sum(1) / total
        y = (light.sum(2) * line).sum(1) / total
        return torch.stack([x, y], 1)

    def errors(self, truth: Tensor, predicted: Tensor) -> dict[str, Tensor]:
        return {"agent_px": (truth - predicted).norm(dim=-1)}
