"""A world with known predictions: a blue disc on white that moves to the pointer.

It reads the disc from the last context frame, so it starts wherever an episode of the toy world
does.  It ignores the square, so its rollouts differ from the dataset.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data.actions import ActionSpec
from data.toy import MOVE_VECTORS, POINTER, RADIUS, SPEED, WINDOW_SIZE
from models.dynamics.dynamics import State
from models.tokenizers.tokenizer import LatentSpec

BLUE = (65, 105, 225)


@dataclass
class Nothing:
    """The memory of a model that remembers nothing."""

    def select(self, index: Tensor) -> Nothing:
        return self


class DiscTokenizer:
    """Latents are the position of the disc, in whole pixels of the 512 x 512 world."""

    latents = LatentSpec("discrete", (1, 2), 1, 513)

    def __init__(self, size: int = 32) -> None:
        self.image_size = (size, size)

    def encode(self, frames: Tensor) -> Tensor:
        size = self.image_size[0]
        blue = (frames.int() - torch.tensor(BLUE)[:, None, None]).abs().sum(1) < 30
        line = (torch.arange(size) + 0.5) * WINDOW_SIZE / size
        weight = blue.sum((1, 2)).clamp(min=1)
        x = (blue.sum(1) * line).sum(1) / weight
        y = (blue.sum(2) * line).sum(1) / weight
        return torch.stack([x, y], 1).round().long()

    def decode(self, latents: Tensor) -> Tensor:
        size = self.image_size[0]
        line = (torch.arange(size) + 0.5) * WINDOW_SIZE / size
        x, y = latents[:, 0, None, None], latents[:, 1, None, None]
        inside = (line[None] - x) ** 2 + (line[:, None] - y) ** 2 < RADIUS**2
        color = torch.tensor(BLUE, dtype=torch.uint8)[:, None, None]
        return torch.where(inside[:, None], color, torch.tensor(255, dtype=torch.uint8))


class PointerWorld:
    """The disc moves at most SPEED per step; the reward is its position from left to right."""

    context, temporal_context = 3, 1
    has_rewards = has_decoder = True
    infers_actions = False
    device = torch.device("cpu")

    def __init__(self, actions: ActionSpec = POINTER, size: int = 32, ends_at: float = 2.0) -> None:
        self.actions, self.tokenizer, self.ends_at = actions, DiscTokenizer(size), ends_at
        self.data_actions, self.image_size = actions, self.tokenizer.image_size
        self.latents = self.state_spec = self.tokenizer.latents

    def reset(self, frames: Tensor, actions: Tensor) -> State:
        assert frames.shape[1] == actions.shape[1] + 1
        latents = self.tokenizer.encode(frames[:, -1])
        rows = torch.ones(len(latents))
        return State(latents, 0 * rows, rows, Nothing())

    def step(self, state: State, action: Tensor) -> State:
        place = state.latents.float()
        if self.actions.kind == "discrete":
            move = torch.tensor(MOVE_VECTORS[action.numpy()]).float()
        else:
            move = action - place
        move = move * (SPEED / move.norm(dim=1, keepdim=True).clamp(min=SPEED))
        latents = (place + move).clamp(0, WINDOW_SIZE).round().long()
        share = latents[:, 0] / WINDOW_SIZE
        return State(latents, share, (share < self.ends_at).float(), Nothing())

    def observe(self, state: State, action: Tensor, frames: Tensor) -> State:
        return self.reset(frames[:, None], action[:, None][:, :0])

    def decode(self, state: State) -> Tensor:
        return self.tokenizer.decode(state.latents)

    def encode(self, frames: Tensor) -> Tensor:
        return self.tokenizer.encode(frames)

    embed = encode


class ToTheRight:
    """A controller that moves up and to the right in every state."""

    def reset(self) -> None:
        """Nothing is remembered."""

    def act(self, state: State, goal: Tensor | None = None) -> Tensor:
        return torch.tensor([[WINDOW_SIZE, 0.0]]).expand(len(state), 2)


def blue_at(image: np.ndarray) -> tuple[float, float]:
    """Return the center of the blue disc, as fractions of the image's width and height."""
    blue = np.abs(image.astype(int) - BLUE).sum(-1) < 30
    assert blue.any(), "no disc in the image"
    y, x = np.nonzero(blue)
    return (x.mean() + 0.5) / image.shape[1], (y.mean() + 0.5) / image.shape[0]
