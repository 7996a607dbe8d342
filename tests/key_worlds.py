"""Worlds whose frames hold numbers: codes made of factors add to two pixels, which can be read.

The first pixel of a frame is the position across, the second the position up or down, the third
the code of the frame's action.
"""

from __future__ import annotations

import numpy as np
import torch
from fake_worlds import CopyWorld, DotState, FakeClip
from torch import Tensor

from data.toy import KEYS

ALONG = torch.tensor([0, -3, 3])


def shift(codes: Tensor) -> Tensor:
    """Return what codes (...) add to the first two pixels: (..., 2)."""
    across, move = KEYS.unravel(codes).unbind(-1)
    return torch.stack([across - 2, ALONG[move]], -1)


class KeyClips:
    """Like data.clips.Clips, over episodes of random codes."""

    actions = KEYS

    def __init__(self, episodes: int = 6, length: int = 24, clip_length: int = 9, keys: int = 3):
        """keys: number of values of `move` that occur."""
        random = np.random.default_rng(0)
        self.clip_length, self.each = clip_length, length - clip_length + 1
        choices = random.integers(0, [5, keys], (episodes, length, 2))
        self.codes = torch.from_numpy(KEYS.ravel(choices))
        places = 100 + shift(self.codes).cumsum(1) - shift(self.codes)
        self.frames = torch.zeros(episodes, length, 3, 4, 4, dtype=torch.uint8)
        self.frames[:, :, 0, 0, :2] = places.to(torch.uint8)
        self.frames[:, :, 0, 0, 2] = self.codes.to(torch.uint8)

    def __len__(self) -> int:
        return len(self.codes) * self.each

    def episode_of(self, index: int) -> int:
        return index // self.each

    def batch(self, indices: np.ndarray) -> FakeClip:
        rows = [divmod(int(i), self.each) for i in indices]
        cut = [(e, slice(s, s + self.clip_length)) for e, s in rows]
        return FakeClip(
            torch.stack([self.frames[place] for place in cut]),
            torch.stack([self.codes[place] for place in cut]),
        )


class KeyReader:
    """An inverse dynamics model without error."""

    actions = KEYS

    def predict(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        step = frames[..., 0, 0, :2].long().diff(dim=1)
        move = (step[..., 1:] == ALONG).long().argmax(-1)
        return torch.stack([step[..., 0] + 2, move], -1), step[..., :1].float()


class StillWorld(CopyWorld):
    """A world that ignores actions."""

    actions = KEYS

    def encode(self, frames: Tensor) -> Tensor:
        return self.tokenizer.encode(frames)


class ObedientWorld(StillWorld):
    """A world that follows its actions."""

    def heard(self, action: Tensor) -> Tensor:
        return shift(action)

    def step(self, state: DotState, action: Tensor) -> DotState:
        latents = state.latents.clone()
        latents[:, :2] += self.heard(action)
        return DotState(latents)


class DeafWorld(ObedientWorld):
    """A world that follows random actions instead."""

    def __init__(self) -> None:
        super().__init__()
        self.random = torch.Generator().manual_seed(1)

    def heard(self, action: Tensor) -> Tensor:
        return shift(torch.randint(0, KEYS.size, action.shape, generator=self.random))


class HalfDeafWorld(DeafWorld):
    """A world that follows actions across, and random ones up and down."""

    def heard(self, action: Tensor) -> Tensor:
        return torch.stack([shift(action)[:, 0], super().heard(action)[:, 1]], 1)
