"""Dynamics over continuous latents, a frame at once and several actions per model step.

A block-causal transformer reads, for each of the last few context frames, its latents and the
`frameskip` actions after it, and predicts the next context frame (DINO-WM, arXiv:2411.04983;
LeWorldModel, arXiv:2603.19312).  Its interface is one action a step: between two context frames it
predicts the frame after the actions given so far.

Letters: B clips, T frames, C context frames, P patches, D latent width, W transformer width, A
action numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated

import torch
from einops import rearrange
from torch import Tensor, nn

from data.actions import ActionSpec
from data.batch import Batch
from data.ranges import CheckedConfig, Range
from models.dynamics.dynamics import Dynamics, State
from models.layers.embeddings import ActionEmbedding
from models.layers.heads import TwoHot
from models.layers.transformer import Cache, Transformer, TransformerConfig
from models.method import CompileFn, Losses
from models.tokenizers.tokenizer import LatentSpec


@dataclass(frozen=True)
class PredictorConfig(CheckedConfig):
    transformer: TransformerConfig = field(
        default_factory=lambda: TransformerConfig(
            dim=192, num_layers=6, num_heads=6, mlp_dim=512, context_frames=3, dropout=0.1
        )
    )
    """Its `context_frames` are `frameskip` frames apart."""
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
class PredictorMemory:
    """The last context frame (B, P, D), the cache of those before, and the actions since."""

    cache: Cache | None
    context_frame: Tensor
    pending_actions: Tensor  # (B, j, A), j < frameskip

    def select(self, index: Tensor) -> PredictorMemory:
        cache = self.cache.select(index) if self.cache else None
        return PredictorMemory(cache, self.context_frame[index], self.pending_actions[index])


class Predictor(Dynamics):
    """Predict the latents of the frame after a block of actions."""

    counts: Tensor
    zeros: Tensor
    ones: Tensor

    def __init__(self, config: PredictorConfig, latents: LatentSpec, actions: ActionSpec) -> None:
        super().__init__()
        if latents.kind != "continuous":
            raise ValueError(
                "this dynamics model predicts vectors, but the run's tokenizer makes codes; give a "
                "recipe of codes (--preset pusht), or another --run"
            )
        self.config, self.latents, self.actions = config, latents, actions
        self.frameskip = config.frameskip
        self.context_frames = config.transformer.context_frames
        self.context = (self.context_frames - 1) * self.frameskip + 1
        self.has_rewards = config.rewards
        dim = config.transformer.dim
        rows, columns = latents.grid
        positions = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).float()
        self.input_proj = nn.Linear(latents.dim, dim)
        self.pos_emb = nn.Parameter(0.02 * torch.randn(latents.num_patches, dim))
        self.action_emb = ActionBlockEmbedding(actions, self.frameskip, dim)
        self.transformer = Transformer(config.transformer, positions, causal_within_frame=False)
        self.delta_head = nn.Linear(dim, latents.dim)
        nn.init.zeros_(self.delta_head.weight)  # the first prediction is no change
        nn.init.zeros_(self.delta_head.bias)
        # constants of a step: to fill them in each time takes launches on a GPU
        self.register_buffer("counts", torch.arange(self.frameskip + 1), persistent=False)
        self.register_buffer("zeros", torch.zeros(()), persistent=False)
        self.register_buffer("ones", torch.ones(()), persistent=False)
        if config.rewards:
            self.reward_head = TwoHot(dim)
            self.continue_head = nn.Linear(dim, 1)

    @property
    def clip_length(self) -> int:
        return self.config.clip_length

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

    # -- rollouts ---------------------------------------------------------------------------

    def start(self, latents: Tensor, actions: Tensor) -> State:
        """latents (B, T, P, D), actions (B, T - 1, A) -> state at the last frame."""
        num_blocks = min((latents.shape[1] - 1) // self.frameskip, self.context_frames - 1)
        latents = latents[:, -(num_blocks * self.frameskip + 1) :]
        cache = None
        if num_blocks:
            action_blocks = actions[:, actions.shape[1] - num_blocks * self.frameskip :]
            action_blocks = action_blocks.unflatten(1, (num_blocks, self.frameskip))
            num_actions = torch.full(
                (len(latents), num_blocks), self.frameskip, device=latents.device
            )
            x = self._tokens(latents[:, : -1 : self.frameskip], action_blocks, num_actions)
            cache = self.transformer(rearrange(x, "B C P W -> B (C P) W"), None)[1]
        ones = torch.ones(len(latents), device=latents.device)
        memory = PredictorMemory(cache, latents[:, -1], self._no_actions(latents))
        return State(latents[:, -1], 0 * ones, ones, memory)

    def step(self, state: State, action: Tensor) -> State:
        """Predict the next frame."""
        return self.rollout(state, action[:, None])

    def rollout(self, state: State, actions: Tensor) -> State:
        """Predict the state after T actions, (B, T, A), one model step per block."""
        while actions.shape[1]:
            memory = state.memory
            assert isinstance(memory, PredictorMemory)
            missing = self.frameskip - memory.pending_actions.shape[1]
            state = self._advance(memory, actions[:, :missing])
            actions = actions[:, missing:]
        return state

    def observe(self, state: State, action: Tensor, latents: Tensor) -> State:
        """Move to the real latents, (B, P, D), that `action` led to."""
        memory = state.memory
        assert isinstance(memory, PredictorMemory)
        ones = torch.ones(len(latents), device=latents.device)
        pending_actions = torch.cat([memory.pending_actions, action[:, None]], dim=1)
        if pending_actions.shape[1] < self.frameskip:
            memory = replace(memory, pending_actions=pending_actions)
        else:
            cache = self._predict_pending(memory, pending_actions)[2]
            memory = PredictorMemory(cache, latents, self._no_actions(latents))
        return State(latents, 0 * ones, ones, memory)

    def _advance(self, memory: PredictorMemory, actions: Tensor) -> State:
        pending_actions = torch.cat([memory.pending_actions, actions], dim=1)
        out, predicted, cache = self._predict_pending(memory, pending_actions)
        if pending_actions.shape[1] < self.frameskip:
            memory = replace(memory, pending_actions=pending_actions)
        else:
            memory = PredictorMemory(cache, predicted, self._no_actions(predicted))
        continues = self.ones.expand(len(predicted))
        if self.config.rewards:
            continues = torch.sigmoid(self.continue_head(out.mean(1))[..., 0].float())
        return State(predicted, self._reward(out), continues, memory)

    def pack(self, state: State) -> dict[str, Tensor]:
        """The context, (B, layers, H, (C - 1) P, E) twice, and a block with the actions given so
        far, (B, frameskip, A), and their number, (B,).

        ValueError for a state that lacks some of its context.
        """
        memory = state.memory
        assert isinstance(memory, PredictorMemory)
        rows = (self.context_frames - 1) * self.latents.num_patches
        if not rows or memory.cache is None or memory.cache.keys[0].shape[2] < rows:
            raise ValueError(
                f"a step of fixed shapes needs a context of 2 frames or more, and a state with all "
                f"of it: {self.context} real frames"
            )
        given = memory.pending_actions
        pending = given.new_zeros(len(given), self.frameskip, *self.actions.shape)
        pending[:, : given.shape[1]] = given
        return {
            "context_frame": memory.context_frame,
            "keys": torch.stack(memory.cache.keys, 1),
            "values": torch.stack(memory.cache.values, 1),
            "pending": pending,
            "count": torch.full((len(given),), given.shape[1], device=given.device),
        }

    def step_packed(
        self, packed: dict[str, Tensor], action: Tensor
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """As `step`, alike at all places of a block."""
        count, pending = packed["count"], packed["pending"]
        is_next = self.counts[:-1] == count[:, None]
        actions = torch.where(_widened(is_next, pending), action[:, None], pending)
        keys, values = (list(packed[name].unbind(1)) for name in ("keys", "values"))
        out, predicted, after = self._predict_next(
            packed["context_frame"], actions[:, None], count[:, None] + 1, Cache(keys, values)
        )
        within = packed | {"pending": actions, "count": count + 1}
        behind = {
            "context_frame": predicted,
            "keys": torch.stack(after.keys, 1),
            "values": torch.stack(after.values, 1),
            "pending": torch.zeros_like(actions),
            "count": torch.zeros_like(count),
        }
        full = count + 1 == self.frameskip
        packed = {n: torch.where(_widened(full, within[n]), behind[n], within[n]) for n in behind}
        return predicted, self._reward(out), packed

    def compile_steps(self, compile_fn: CompileFn) -> None:
        """Compile a step, the embedding of its actions included."""
        self._predict_next = compile_fn(self, self._predict_next)

    # -- pieces -----------------------------------------------------------------------------

    def _predict_pending(
        self, memory: PredictorMemory, pending_actions: Tensor
    ) -> tuple[Tensor, Tensor, Cache]:
        """Read the last context frame with the actions since: outputs (B, P, W), the next frame's
        latents (B, P, D), and the cache with that context frame."""
        padded = pending_actions
        if pending_actions.shape[1] < self.frameskip:
            padded = pending_actions.new_zeros(
                len(pending_actions), self.frameskip, *self.actions.shape
            )
            padded[:, : pending_actions.shape[1]] = pending_actions
        num_actions = self.counts[pending_actions.shape[1]].expand(len(pending_actions), 1)
        return self._predict_next(memory.context_frame, padded[:, None], num_actions, memory.cache)

    def _predict_next(
        self, context_frame: Tensor, actions: Tensor, num_actions: Tensor, cache: Cache | None
    ) -> tuple[Tensor, Tensor, Cache]:
        """As `_predict_pending`, with shapes that do not depend on the number of actions."""
        tokens = self._tokens(context_frame[:, None], actions, num_actions)[:, 0]
        out, new_cache = self.transformer(tokens, cache)
        return out, context_frame + self.delta_head(out).to(context_frame.dtype), new_cache

    def _reward(self, out: Tensor) -> Tensor:
        """Outputs (B, P, W) -> (B,)."""
        return self.reward_head(out.mean(1)) if self.config.rewards else self.zeros.expand(len(out))

    def predict(
        self, context: Tensor, actions: Tensor, num_actions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Predict the next context frames: context (B, C, P, D), actions (B, C, frameskip, A), how
        many of them are given (B, C) -> (B, C, P, D), outputs (B, C, P, W)."""
        x = self._tokens(context, actions, num_actions)
        out, _ = self.transformer(rearrange(x, "B C P W -> B (C P) W"))
        out = rearrange(out, "B (C P) W -> B C P W", P=self.latents.num_patches)
        return context + self.delta_head(out).to(context.dtype), out

    def _tokens(self, context: Tensor, actions: Tensor, num_actions: Tensor) -> Tensor:
        action_tokens = self.action_emb(actions, num_actions)[:, :, None]
        return self.input_proj(context) + action_tokens + self.pos_emb

    def _no_actions(self, like: Tensor) -> Tensor:
        dtype = torch.float32 if self.actions.kind == "continuous" else torch.int64
        return torch.zeros(len(like), 0, *self.actions.shape, dtype=dtype, device=like.device)


def _widened(condition: Tensor, like: Tensor) -> Tensor:
    """Give a condition, (B,) or (B, T), the number of axes of what it chooses between."""
    return condition.view(*condition.shape, *[1] * (like.dim() - condition.dim()))


class ActionBlockEmbedding(nn.Module):
    """One vector for up to `block_size` consecutive actions, each in a slot of its own."""

    slots: Tensor

    def __init__(self, spec: ActionSpec, block_size: int, dim: int) -> None:
        super().__init__()
        self.action_emb = ActionEmbedding(spec, dim)
        self.mix = nn.Linear(block_size * dim, dim)
        self.count_emb = nn.Embedding(block_size, dim)
        nn.init.normal_(self.count_emb.weight, std=0.02)
        self.register_buffer("slots", torch.arange(block_size), persistent=False)

    def forward(self, actions: Tensor, num_actions: Tensor) -> Tensor:
        """(..., block_size, A) or (..., block_size) codes, how many are given (...) -> (..., D)."""
        mask = self.slots < num_actions[..., None]
        embedded = self.action_emb(actions) * mask[..., None]
        return self.mix(nn.functional.gelu(embedded).flatten(-2)) + self.count_emb(num_actions - 1)
