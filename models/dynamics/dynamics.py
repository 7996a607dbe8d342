"""The dynamics model's contract: latents and actions to the next latents."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Protocol, Self

import torch
from torch import Tensor

from data.actions import ActionSpec
from data.batch import Batch
from models.method import CompileFn, Losses, TrainableModule
from models.tokenizers.codes import HasCodebooks
from models.tokenizers.tokenizer import LatentSpec

if TYPE_CHECKING:
    from models.frame_residual import FrameResidual


class Memory(Protocol):
    """What a dynamics model remembers of the past, one row a state."""

    def select(self, index: Tensor) -> Self:
        """Select the rows at `index`, (M,) int64."""
        ...


@dataclass
class History:
    """The past that a tokenizer with context > 1 encodes and decodes with."""

    frames: Tensor  # (B, C, 3, H, W) uint8, the last real ones
    latents: Tensor  # (B, C, N), those before the state's own

    def select(self, index: Tensor) -> History:
        return History(self.frames[index], self.latents[index])


@dataclass
class State:
    """Where a batch of model rollouts stands. B rows, N latents a frame."""

    latents: Tensor  # (B, N) int64 codes, or (B, P, D): what is planned in and fed to policies
    reward: Tensor  # (B,) expected reward of arriving here; 0 at a start, or without a head
    continues: Tensor  # (B,) probability that the episode does; 1 at a start, or without a head
    memory: Memory
    frame_residual: FrameResidual | None = None  # kept by the World; dynamics does not read it
    history: History | None = None  # kept by the World; dynamics does not read it

    def __len__(self) -> int:
        return len(self.latents)

    def select(self, index: Tensor) -> State:
        """Select the rows at `index`, (M,) int64."""
        return State(
            self.latents[index],
            self.reward[index],
            self.continues[index],
            self.memory.select(index),
            self.frame_residual.select(index) if self.frame_residual else None,
            self.history.select(index) if self.history else None,
        )

    def repeat(self, count: int) -> State:
        """Repeat every row `count` times: N candidates from one state, without what only a decoder
        reads."""
        rows = torch.arange(len(self), device=self.latents.device)
        bare = replace(self, frame_residual=None, history=None)
        return bare.select(rows.repeat_interleave(count))


class Dynamics(TrainableModule, ABC):
    """Latents and actions to the next latents. Actions are normalized: [-1, 1], or codes.

    Letters: B states, T frames, N latents a frame, A action numbers.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"latents", "actions", "rewards", "continues"})
    latents: LatentSpec
    """What it reads: the tokenizer's latents."""
    actions: ActionSpec
    """What a step takes: the data's actions, or the model's own where `infers_actions`."""
    context: int
    """Frames of the past that it can use."""
    context_interval: int = 1
    """Frames from one that `start` reads to the next, counted back from the last."""
    has_rewards: bool
    infers_actions: ClassVar[bool] = False

    @property
    def state_spec(self) -> LatentSpec:
        """What the latents of its State are; by default what it reads."""
        return self.latents

    def load_codebook(self, source: HasCodebooks) -> None:
        """Copy the tokenizer's codebooks, before training."""

    def begin_with(self, tokenizer: HasCodebooks) -> None:
        """Take weights of the tokenizer to begin a training with; here none."""

    @abstractmethod
    def loss(self, batch: Batch) -> Losses:
        """Named terms on clips of `clip_length` frames."""

    def layer_frames(self, num_frames: int) -> range:
        """Frames of a clip that its layers' outputs stand for in `loss`, in their order."""
        return range(num_frames)

    @abstractmethod
    def start(self, latents: Tensor, actions: Tensor) -> State:
        """latents (B, T, N), T >= 1, actions (B, T - 1, A) -> state at the last frame."""

    def from_state(self, latents: Tensor) -> State:
        """The state whose latents, (B, N) of `state_spec`, are these; for models whose state is all
        that they remember."""
        raise ValueError(f"{type(self).__name__} remembers more than its state's latents")

    @abstractmethod
    def step(self, state: State, action: Tensor) -> State:
        """Predict what one action, (B, A), leads to."""

    def rollout(self, state: State, actions: Tensor) -> State:
        """Predict what a sequence of actions, (B, T, A), leads to in the end."""
        for action in actions.unbind(1):
            state = self.step(state, action)
        return state

    @abstractmethod
    def observe(self, state: State, action: Tensor, latents: Tensor) -> State:
        """Move to the real latents, (B, N), that one action led to."""

    def pack(self, state: State) -> dict[str, Tensor]:
        """What a state remembers, as tensors whose shapes no step changes, for steps outside of
        Python.  ValueError where that is not possible."""
        raise ValueError(f"{type(self).__name__} has no step of fixed shapes (`step_packed`)")

    def step_packed(
        self, packed: dict[str, Tensor], action: Tensor
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """As `step`, from and to what `pack` gives: the latents, the reward, and what is
        remembered."""
        raise NotImplementedError

    def readout(self, state: State) -> Tensor:
        """What a decoder draws of a state: (B, N) codes or (B, P, D)."""
        return state.latents

    def state_vectors(self, latents: Tensor) -> Tensor | None:
        """Latents of states, (..., P, D), as vectors to compare, (..., Q, E), where these are not
        the latents themselves: states that hold more of the past than a frame shows."""
        return None

    def infer_actions(self, frames: Tensor) -> Tensor:
        """The model's own actions between frames: (B, T, 3, H, W) uint8 -> (B, T - 1, A)."""
        raise ValueError(f"{type(self).__name__} does not infer actions; the data has to have them")

    def latent_action_vectors(self, frames: Tensor) -> Tensor:
        """The inferred actions, not quantized yet: (B, T, 3, H, W) -> (B, T - 1, K) float."""
        raise ValueError(f"{type(self).__name__} does not infer actions; the data has to have them")

    def compile_steps(self, compile_fn: CompileFn) -> None:
        """Compile what a step runs, for the shapes it comes in and the weights that are there."""
