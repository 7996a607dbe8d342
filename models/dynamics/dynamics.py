"""What callers may rely on when they hold a dynamics model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from data.actions import ActionSpec
from models.layers.compile_fn import CompileFn
from models.tokenizers.tokenizer import LatentSpec, Tokenizer


class Memory(Protocol):
    """What a dynamics model remembers of the past, a row a state."""

    def select(self, index: Tensor) -> Self:
        """Give the rows at `index`, (M,) int64."""
        ...


@dataclass
class FrameResidual:
    """The last real frames, from which a World keeps what codes cannot tell (skip connections from
    the last true frame: Denton & Fergus, arXiv:1802.07687)."""

    frames: Tensor  # (B, T, 3, H, W) uint8
    latents: Tensor  # (B, T, N), theirs
    unchanged: Tensor  # (B, P), share of a patch's codes that have not changed since
    residual: Tensor | None = None  # (B, 3, H, W) float, once somebody has looked

    def select(self, index: Tensor) -> FrameResidual:
        residual = None if self.residual is None else self.residual[index]
        return FrameResidual(
            self.frames[index], self.latents[index], self.unchanged[index], residual
        )


@dataclass
class State:
    """Where a batch of imagined worlds stands. B rows, N latents a frame."""

    latents: Tensor  # (B, N) int64 codes, or (B, P, D)
    reward: Tensor  # (B,) expected reward on arriving here; 0 at a start, or without a head
    continues: Tensor  # (B,) probability that it goes on; 1 at a start, or without a head
    memory: Memory
    frame_residual: FrameResidual | None = (
        None  # kept by a World that is looked at; dynamics knows nothing of it
    )

    def __len__(self) -> int:
        return len(self.latents)

    def select(self, index: Tensor) -> State:
        """Give the rows at `index`, (M,) int64."""
        return State(
            self.latents[index],
            self.reward[index],
            self.continues[index],
            self.memory.select(index),
            self.frame_residual.select(index) if self.frame_residual else None,
        )

    def repeat(self, count: int) -> State:
        """Give every row `count` times in a row: N candidates from one state, without what is
        kept only to be looked at."""
        rows = torch.arange(len(self), device=self.latents.device)
        return replace(self, frame_residual=None).select(rows.repeat_interleave(count))


@runtime_checkable
class Dynamics(Protocol):
    """Latents and actions to the next latents. Actions are normalised: [-1, 1], or codes."""

    latents: LatentSpec
    actions: ActionSpec
    context: int
    """Frames that it can make use of."""
    has_rewards: bool

    def load_codebook(self, tokenizer: Tokenizer) -> None:
        """Take from the tokenizer, before training, what helps to read its latents."""
        ...

    def loss(
        self, latents: Tensor, actions: Tensor, rewards: Tensor | None, continues: Tensor | None
    ) -> dict[str, Tensor]:
        """latents (B, T, N), actions (B, T, A), rewards and continues (B, T) -> named terms."""
        ...

    def start(self, latents: Tensor, actions: Tensor) -> State:
        """latents (B, T, N), T >= 1, and the T - 1 actions between -> state at the last."""
        ...

    def step(self, state: State, action: Tensor) -> State:
        """Imagine what one action, (B, A), leads to."""
        ...

    def rollout(self, state: State, actions: Tensor) -> State:
        """Imagine what actions in a row, (B, T, A), lead to in the end; planners ask no more."""
        ...

    def observe(self, state: State, action: Tensor, latents: Tensor) -> State:
        """Take in what one action has really led to: latents (B, N)."""
        ...

    def compile_steps(self, compile_fn: CompileFn) -> None:
        """Compile what a step takes, for the sizes it comes in and the weights that are there."""
        ...
