"""Dynamics over continuous latents that predict a block of actions at once.

Between two context frames it predicts the frame after the actions given so far, so that its
interface is one action a step, whatever the length of a block.  What predicts is a subclass's.

Letters: B clips, T frames, C context frames, P patches, D latent width, W width of its outputs, A
action numbers.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from torch import Tensor, nn

from data.actions import ActionSpec
from data.batch import Batch
from data.ranges import CheckedConfig, Range
from models.dynamics.dynamics import Dynamics, Memory, State
from models.layers.heads import TwoHot
from models.method import CompileFn, Losses
from models.tokenizers.tokenizer import LatentSpec


@dataclass(frozen=True)
class FrameskipConfig(CheckedConfig):
    frameskip: Annotated[int, Range(1, 1000)] = 5
    """Actions from one context frame to the next."""
    rollout_weight: Annotated[float, Range(0, 10**6)] = 1.0
    """Weight of the loss from predicted context frames; that from real ones has 1."""
    rewards: bool = True
    """Learn a reward and a continue head."""
    reward_weight: Annotated[float, Range(0, 10**6)] = 0.1
    """Weight of the two heads' losses."""
    clip_length: Annotated[int, Range(2, 10**4)] = 21
    """Frames of a training clip."""

    def check(self) -> None:
        super().check()
        if (self.clip_length - 1) % self.frameskip:
            raise ValueError(
                f"--clip-length {self.clip_length} is not a multiple of --frameskip "
                f"{self.frameskip}, plus 1; give such a number"
            )


@dataclass
class FrameskipMemory:
    """The last context frame (B, P, D), what is kept of those before, and the actions since."""

    past: Memory | None
    context_frame: Tensor
    pending_actions: Tensor  # (B, j, A), j < frameskip

    def select(self, index: Tensor) -> FrameskipMemory:
        past = self.past.select(index) if self.past else None
        return FrameskipMemory(past, self.context_frame[index], self.pending_actions[index])


class FrameskipDynamics(Dynamics):
    """Predict the latents of the frame after a block of actions."""

    counts: Tensor
    zeros: Tensor
    ones: Tensor
    config: FrameskipConfig

    def __init__(
        self,
        config: FrameskipConfig,
        latents: LatentSpec,
        actions: ActionSpec,
        context_frames: int,
    ) -> None:
        """context_frames: those that it reads, `frameskip` apart."""
        super().__init__()
        if latents.kind != "continuous":
            raise ValueError(
                "this dynamics model predicts vectors, but the run's tokenizer makes codes; give a "
                "recipe of codes (--preset pusht), or another --run"
            )
        self.config, self.latents, self.actions = config, latents, actions
        self.frameskip = self.context_interval = config.frameskip
        self.context_frames = context_frames
        self.context = (context_frames - 1) * self.frameskip + 1
        self.has_rewards = config.rewards
        # constants of a step: to fill them in each time takes launches on a GPU
        self.register_buffer("counts", torch.arange(self.frameskip + 1), persistent=False)
        self.register_buffer("zeros", torch.zeros(()), persistent=False)
        self.register_buffer("ones", torch.ones(()), persistent=False)

    def add_heads(self, width: int) -> None:
        """Make the heads that read the outputs, (..., W), where rewards are learned."""
        if self.config.rewards:
            self.reward_head = TwoHot(width)
            self.continue_head = nn.Linear(width, 1)

    @property
    def clip_length(self) -> int:
        return self.config.clip_length

    @abstractmethod
    def predict(
        self, context: Tensor, actions: Tensor, num_actions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Predict the next context frames: context (B, C, P, D), actions (B, C, frameskip, A), how
        many of them are given (B, C) -> (B, C, P, D), outputs (B, C, P, W)."""

    @abstractmethod
    def predict_next(
        self, context_frame: Tensor, actions: Tensor, num_actions: Tensor, past: Memory | None
    ) -> tuple[Tensor, Tensor, Memory]:
        """Read the last context frame (B, P, D) and the actions since, (B, 1, frameskip, A) of
        which (B, 1) are given: outputs (B, P, W), the next frame's latents (B, P, D), and the past
        with that context frame."""

    @abstractmethod
    def read_past(self, context: Tensor, actions: Tensor, num_actions: Tensor) -> Memory:
        """Keep what a later step needs of context frames and the blocks after them: as `predict`
        takes them."""

    # -- training ---------------------------------------------------------------------------

    def loss(self, batch: Batch) -> Losses:
        """Squared error of the next context frames, from real and from predicted ones.

        It is relative to the no-change baseline of the (micro-)batch: 1 is to predict no change,
        whatever the latents' scale.

        latents (B, T, P, D), T = n frameskip + 1.  The last block of a clip has a random number of
        actions from 1 to frameskip.
        """
        latents, actions = batch.require("latents", "actions")
        rewards, continues = batch.rewards, batch.continues
        num_blocks = (latents.shape[1] - 1) // self.frameskip
        if num_blocks < 1 or latents.shape[1] != num_blocks * self.frameskip + 1:
            raise ValueError(
                f"a clip of {latents.shape[1]} frames does not divide into blocks of "
                f"{self.frameskip}; give --model.clip-length a multiple of {self.frameskip}, plus 1"
            )
        num_actions = torch.full((len(latents), num_blocks), self.frameskip, device=latents.device)
        num_actions[:, -1] = torch.randint(
            1, self.frameskip + 1, (len(latents),), device=latents.device
        )
        starts = torch.arange(num_blocks, device=latents.device) * self.frameskip
        rows = torch.arange(len(latents), device=latents.device)[:, None]
        target_frames = starts + num_actions  # (B, blocks): the frame that each block leads to
        action_blocks = actions[:, : num_blocks * self.frameskip].unflatten(
            1, (num_blocks, self.frameskip)
        )
        context, target = latents[:, starts], latents[rows, target_frames]

        predicted, out = self.predict(context, action_blocks, num_actions)
        copy_mse = nn.functional.mse_loss(context.float(), target.float()).clamp(min=1e-8)
        error = nn.functional.mse_loss(predicted.float(), target.float())
        losses = {"prediction": error / copy_mse}
        if num_blocks > 1 and self.config.rollout_weight:
            rollout_context = torch.cat([context[:, :1], predicted[:, :-1]], dim=1)
            rollout_predicted, _ = self.predict(rollout_context, action_blocks, num_actions)
            error = nn.functional.mse_loss(rollout_predicted[:, 1:].float(), target[:, 1:].float())
            losses["rollout"] = self.config.rollout_weight * error / copy_mse
        if self.config.rewards and rewards is not None:
            error = self.reward_head.loss(out.mean(2), rewards[rows, target_frames]).mean()
            losses["reward"] = self.config.reward_weight * error
        if self.config.rewards and continues is not None:
            error = nn.functional.binary_cross_entropy_with_logits(
                self.continue_head(out.mean(2))[..., 0].float(),
                continues[rows, target_frames].float(),
            )
            losses["continue"] = self.config.reward_weight * error
        return losses

    def layer_frames(self, num_frames: int) -> range:
        """The context frames."""
        return range(0, num_frames - 1, self.frameskip)

    # -- rollouts ---------------------------------------------------------------------------

    def start(self, latents: Tensor, actions: Tensor) -> State:
        """latents (B, T, P, D), actions (B, T - 1, A) -> state at the last frame."""
        num_blocks = min((latents.shape[1] - 1) // self.frameskip, self.context_frames - 1)
        latents = latents[:, -(num_blocks * self.frameskip + 1) :]
        past = None
        if num_blocks:
            action_blocks = actions[:, actions.shape[1] - num_blocks * self.frameskip :]
            action_blocks = action_blocks.unflatten(1, (num_blocks, self.frameskip))
            num_actions = torch.full(
                (len(latents), num_blocks), self.frameskip, device=latents.device
            )
            past = self.read_past(latents[:, : -1 : self.frameskip], action_blocks, num_actions)
        ones = torch.ones(len(latents), device=latents.device)
        memory = FrameskipMemory(past, latents[:, -1], self._no_actions(latents))
        return State(latents[:, -1], 0 * ones, ones, memory)

    def step(self, state: State, action: Tensor) -> State:
        """Predict the next frame."""
        return self.rollout(state, action[:, None])

    def rollout(self, state: State, actions: Tensor) -> State:
        """Predict the state after T actions, (B, T, A), one model step per block."""
        while actions.shape[1]:
            memory = state.memory
            assert isinstance(memory, FrameskipMemory)
            missing = self.frameskip - memory.pending_actions.shape[1]
            state = self._advance(memory, actions[:, :missing])
            actions = actions[:, missing:]
        return state

    def observe(self, state: State, action: Tensor, latents: Tensor) -> State:
        """Move to the real latents, (B, P, D), that `action` led to."""
        memory = state.memory
        assert isinstance(memory, FrameskipMemory)
        ones = torch.ones(len(latents), device=latents.device)
        pending_actions = torch.cat([memory.pending_actions, action[:, None]], dim=1)
        if pending_actions.shape[1] < self.frameskip:
            memory = replace(memory, pending_actions=pending_actions)
        else:
            past = self.extend_past(memory, pending_actions)
            memory = FrameskipMemory(past, latents, self._no_actions(latents))
        return State(latents, 0 * ones, ones, memory)

    def extend_past(self, memory: FrameskipMemory, actions: Tensor) -> Memory | None:
        """The past with the last context frame and the whole block of actions after it, (B,
        frameskip, A), when the next context frame is a real one."""
        return self._predict_pending(memory, actions)[2]

    def _advance(self, memory: FrameskipMemory, actions: Tensor) -> State:
        pending_actions = torch.cat([memory.pending_actions, actions], dim=1)
        out, predicted, past = self._predict_pending(memory, pending_actions)
        if pending_actions.shape[1] < self.frameskip:
            memory = replace(memory, pending_actions=pending_actions)
        else:
            memory = FrameskipMemory(past, predicted, self._no_actions(predicted))
        continues = self.ones.expand(len(predicted))
        if self.config.rewards:
            continues = torch.sigmoid(self.continue_head(out.mean(1))[..., 0].float())
        return State(predicted, self._reward(out), continues, memory)

    def compile_steps(self, compile_fn: CompileFn) -> None:
        """Compile a step, the embedding of its actions included."""
        self.predict_next = compile_fn(self, self.predict_next)

    # -- pieces -----------------------------------------------------------------------------

    def _predict_pending(
        self, memory: FrameskipMemory, pending_actions: Tensor
    ) -> tuple[Tensor, Tensor, Memory]:
        """Read the last context frame with the actions since: outputs (B, P, W), the next frame's
        latents (B, P, D), and the past with that context frame."""
        padded = pending_actions
        if pending_actions.shape[1] < self.frameskip:
            padded = pending_actions.new_zeros(
                len(pending_actions), self.frameskip, *self.actions.shape
            )
            padded[:, : pending_actions.shape[1]] = pending_actions
        num_actions = self.counts[pending_actions.shape[1]].expand(len(pending_actions), 1)
        return self.predict_next(memory.context_frame, padded[:, None], num_actions, memory.past)

    def _reward(self, out: Tensor) -> Tensor:
        """Outputs (B, P, W) -> (B,)."""
        return self.reward_head(out.mean(1)) if self.config.rewards else self.zeros.expand(len(out))

    def _no_actions(self, like: Tensor) -> Tensor:
        dtype = torch.float32 if self.actions.kind == "continuous" else torch.int64
        return torch.zeros(len(like), 0, *self.actions.shape, dtype=dtype, device=like.device)
