"""A tokenizer and a dynamics model together: a world that can be entered, acted in, looked at."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from models.codes import CodeVectors
from models.dynamics import Dynamics, State
from models.tokenizer import Tokenizer


class World(nn.Module):
    """Everything is batched; actions are in the environment's own units.

    Letters: B worlds, T frames, A numbers of an action.
    """

    def __init__(
        self, tokenizer: Tokenizer, dynamics: Dynamics, precision: Literal["bf16", "fp32"] = "fp32"
    ) -> None:
        super().__init__()
        if tokenizer.latents != dynamics.latents:
            raise ValueError(
                f"the tokenizer makes {tokenizer.latents}, but the dynamics model was trained on "
                f"{dynamics.latents}; use the two of one run"
            )
        self.tokenizer, self.dynamics = tokenizer, dynamics
        self.actions, self.latents = dynamics.actions, dynamics.latents
        self.context = dynamics.context
        self.image_size = tokenizer.image_size
        self.vectors = CodeVectors(self.latents)
        """Latents, (..., N) codes or (..., P, D), as vectors (..., P, D) that can be compared."""
        self.vectors.adopt(tokenizer)
        self.precision: Literal["bf16", "fp32"] = precision
        self.eval()

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def reset(self, frames: Tensor, actions: Tensor) -> State:
        """Enter at the last of T >= 1 real frames: (B, T, 3, H, W) uint8, (B, T - 1, A)."""
        frames, actions = frames[:, -self.context :], actions.to(self.device)
        actions = actions[:, max(0, actions.shape[1] - frames.shape[1] + 1) :]
        with self._arithmetic():
            codes = self.tokenizer.encode(frames.to(self.device).flatten(0, 1))
            latents = rearrange(codes, "(B T) ... -> B T ...", B=len(frames))
            return self.dynamics.start(latents, self.actions.normalize(actions))

    def step(self, state: State, action: Tensor) -> State:
        """Imagine what `action`, (B, A), leads to."""
        with self._arithmetic():
            return self.dynamics.step(state, self.actions.normalize(action.to(self.device)))

    def rollout(self, state: State, actions: Tensor) -> State:
        """Imagine what actions, (B, T, A), lead to in the end."""
        with self._arithmetic():
            return self.dynamics.rollout(state, self.actions.normalize(actions.to(self.device)))

    def observe(self, state: State, action: Tensor, frames: Tensor) -> State:
        """Take in the real frames, (B, 3, H, W) uint8, that `action`, (B, A), has led to."""
        with self._arithmetic():
            latents = self.tokenizer.encode(frames.to(self.device))
            return self.dynamics.observe(
                state, self.actions.normalize(action.to(self.device)), latents
            )

    def encode(self, frames: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 -> (B, N) codes or (B, P, D)."""
        with self._arithmetic():
            return self.tokenizer.encode(frames.to(self.device))

    def decode(self, state: State) -> Tensor:
        """Look: (B, 3, H, W) uint8."""
        with self._arithmetic():
            return self.tokenizer.decode(state.latents)

    def _arithmetic(self) -> AbstractContextManager[object]:
        return arithmetic(self.device, self.precision)


def arithmetic(
    device: torch.device, precision: Literal["bf16", "fp32"]
) -> AbstractContextManager[object]:
    """Multiply in `precision` inside a `with`."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")
