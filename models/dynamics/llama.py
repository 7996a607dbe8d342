"""Dynamics as a Llama-style transformer over interleaved frame and action tokens.

Two ways of decoding the next frame:
  parallel        a block is [a_t, z_t]; its outputs at the patches are z_{t+1}, all at once;
  autoregressive  a block is [a_{t-1}, z_t]; each output is the next token, one by one.

A patch may have several codes (product quantization): they are one token, predicted together.

Letters: B clips, T frames, P patches, N codes a frame, K codes of a codebook, D width, A action
numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from data.actions import ActionSpec
from data.batch import Batch
from data.ranges import CheckedConfig, Range
from models.dynamics.dynamics import Dynamics, State
from models.layers.embeddings import ActionEmbedding, PointerEmbedding
from models.layers.heads import CodeHead, TwoHot
from models.layers.sampling import Sampling
from models.layers.transformer import Cache, Transformer, TransformerConfig
from models.method import CompileFn, Losses
from models.tokenizers.codes import CodebookEmbedding, HasCodebooks, flat_ids
from models.tokenizers.tokenizer import LatentSpec


@dataclass(frozen=True)
class LlamaConfig(CheckedConfig):
    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    decoding: Literal["parallel", "autoregressive"] = "parallel"
    """A whole frame at once, or token by token."""
    changed_token_weight: Annotated[float, Range(above=0, high=10**6)] = 5.0
    """Weight of a code that changes; an unchanged one has 1.  Most are unchanged, and copying would
    be right nearly everywhere."""
    scheduled_sampling: Annotated[float, Range(0, 1)] = 0.25
    """Share of training clips whose later frames are the model's predictions, as in a rollout
    (parallel decoding only)."""
    rewards: bool = True
    """Learn a reward and a continue head."""
    reward_weight: Annotated[float, Range(0, 10**6)] = 0.1
    """Weight of the two heads' losses; at 1 their gradient dominates that of the codes."""
    clip_length: Annotated[int, Range(2, 10**4)] = 8
    """Frames of a training clip."""


@dataclass
class LlamaMemory:
    """The cache, and the pending blocks that it does not hold yet: latents (B, T, N), actions
    (B, T, A).  `has_action` is False where a block has no action (a first frame)."""

    cache: Cache | None
    latents: Tensor
    actions: Tensor
    has_action: list[bool]

    def select(self, index: Tensor) -> LlamaMemory:
        cache = self.cache.select(index) if self.cache else None
        return LlamaMemory(cache, self.latents[index], self.actions[index], self.has_action)

    def append(
        self, latents: Tensor, action: Tensor, has_action: bool, max_blocks: int
    ) -> LlamaMemory:
        """Add a pending block; with `max_blocks` pending, the cache is dropped."""
        pending = torch.cat([self.latents, latents[:, None]], dim=1)[:, -max_blocks:]
        actions = torch.cat([self.actions, action[:, None]], dim=1)[:, -max_blocks:]
        cache = None if len(self.has_action) + 1 >= max_blocks else self.cache
        return LlamaMemory(cache, pending, actions, [*self.has_action, has_action][-max_blocks:])


class LlamaDynamics(CodeHead, Dynamics):
    """Predict the codes of the next frame."""

    def __init__(self, config: LlamaConfig, latents: LatentSpec, actions: ActionSpec) -> None:
        super().__init__()
        if latents.kind != "discrete":
            raise ValueError(
                "this dynamics model predicts codes, but the run's tokenizer makes vectors; give a "
                "recipe of vectors (--preset keypoints), or another --run"
            )
        self.config, self.latents, self.actions = config, latents, actions
        self.context = config.transformer.context_frames
        self.has_rewards = config.rewards
        self.sampling = Sampling()
        dim = config.transformer.dim

        self.vectors = CodebookEmbedding(latents)
        self.input_proj = nn.Linear(latents.dim, dim)
        self.code_emb = nn.Embedding(latents.num_codebooks * latents.codebook_size, dim)
        nn.init.zeros_(self.code_emb.weight)
        self.pos_emb = nn.Parameter(0.02 * torch.randn(latents.num_patches, dim))
        self.action_emb = ActionEmbedding(actions, dim)
        if config.decoding == "autoregressive":  # a first frame has no action that led to it
            self.no_action = nn.Parameter(0.02 * torch.randn(dim))
        self.pointer_emb = PointerEmbedding(latents.grid, dim) if actions.pointer else None

        rows, columns = latents.grid
        positions = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).float()
        center = positions.mean(0, keepdim=True)
        self.transformer = Transformer(
            config.transformer,
            positions=torch.cat([center, positions]),
            causal_within_frame=config.decoding == "autoregressive",
        )
        self.make_code_head(dim)
        if config.rewards:
            self.reward_head = TwoHot(dim)
            self.continue_head = nn.Linear(dim, 1)

    @property
    def clip_length(self) -> int:
        return self.config.clip_length

    def load_codebook(self, source: HasCodebooks) -> None:
        """Copy the vectors of the tokenizer's codes; they are not trained."""
        self.vectors.load_codebook(source)

    # -- training ---------------------------------------------------------------------------

    def loss(self, batch: Batch) -> Losses:
        """Cross-entropy of the next codes, and of the heads where the data has them."""
        latents, actions = batch.require("latents", "actions")
        rewards, continues = batch.rewards, batch.continues
        if self.config.decoding == "parallel":
            inputs = self._apply_scheduled_sampling(latents[:, :-1], actions)
            out = self.blocks(inputs, actions[:, :-1], [True] * inputs.shape[1])[0]
            out, summary = out[:, :, 1:], out[:, :, 0]
        else:
            prev_actions = torch.cat([torch.zeros_like(actions[:, :1]), actions[:, :-1]], dim=1)
            has_action = [False] + [True] * (latents.shape[1] - 1)
            out = self.blocks(latents, prev_actions, has_action)[0]
            inputs, out, summary = latents[:, :-1], out[:, 1:, :-1], out[:, 1:, -1]
        target = latents[:, 1:]
        cross_entropy, predicted = self.cross_entropy(out, inputs, target)
        changed = latents[:, :-1] != target
        weights = 1 + (self.config.changed_token_weight - 1) * changed.float()
        with torch.no_grad():
            # sums under a mask: indexing by one would wait for the GPU
            correct = (predicted == target) & changed
            changed_accuracy = correct.sum() / changed.sum().clamp(min=1)
        losses = {
            # a plain mean: the means of processes and micro-batches average to the whole
            "cross_entropy": (cross_entropy * weights).mean(),
            "changed_accuracy": changed_accuracy,
        }
        if self.config.rewards and rewards is not None:
            head_loss = self.reward_head.loss(summary, rewards[:, 1:]).mean()
            losses["reward"] = self.config.reward_weight * head_loss
        if self.config.rewards and continues is not None:
            logit = self.continue_head(summary)[..., 0].float()
            head_loss = nn.functional.binary_cross_entropy_with_logits(
                logit, continues[:, 1:].float()
            )
            losses["continue"] = self.config.reward_weight * head_loss
        return losses

    def layer_frames(self, num_frames: int) -> range:
        """Decoded in parallel, the last frame is only a target."""
        return range(num_frames - (self.config.decoding == "parallel"))

    @torch.no_grad()
    def _apply_scheduled_sampling(self, latents: Tensor, actions: Tensor) -> Tensor:
        """In the first rows, replace the frames after a random one by predictions: (B, T, N)."""
        num_rows = round(self.config.scheduled_sampling * len(latents))
        if not num_rows or latents.shape[1] == 1:
            return latents
        subset, subset_actions = latents[:num_rows], actions[:num_rows, : latents.shape[1]]
        out = self.blocks(subset, subset_actions, [True] * subset.shape[1])[0]
        predicted = self.logits(out[:, :-1, 1:], subset[:, :-1]).argmax(-1)
        first_replaced = torch.randint(
            1, subset.shape[1] + 1, (num_rows, 1, 1), device=subset.device
        )
        replaced = (
            torch.arange(1, subset.shape[1], device=subset.device)[None, :, None] >= first_replaced
        )
        mixed = torch.cat([subset[:, :1], torch.where(replaced, predicted, subset[:, 1:])], dim=1)
        return torch.cat([mixed, latents[num_rows:]])

    # -- rollouts ---------------------------------------------------------------------------

    def start(self, latents: Tensor, actions: Tensor) -> State:
        """latents (B, T, N), actions (B, T - 1, A) -> state at the last frame."""
        latents, actions = latents[:, -self.context :], actions[:, -(self.context - 1) :]
        if self.context == 1:
            actions = actions[:, :0]
        ones = torch.ones(len(latents), device=latents.device)
        if self.config.decoding == "parallel":
            pending, has_action = latents[:, :-1], [True] * (latents.shape[1] - 1)
        else:
            pending, has_action = latents, [False] + [True] * (latents.shape[1] - 1)
            no_action = actions.new_zeros(len(latents), 1, *self.actions.shape)
            actions = torch.cat([no_action, actions], dim=1)
        return State(
            latents[:, -1], 0 * ones, ones, LlamaMemory(None, pending, actions, has_action)
        )

    def observe(self, state: State, action: Tensor, latents: Tensor) -> State:
        """Move to the real latents, (B, N), that `action` led to."""
        memory = state.memory
        assert isinstance(memory, LlamaMemory)
        ones = torch.ones(len(latents), device=latents.device)
        if self.config.decoding == "parallel":
            memory = memory.append(state.latents, action, True, self.context - 1)
        else:
            memory = memory.append(latents, action, True, self.context)
        return State(latents, 0 * ones, ones, memory)

    def compile_steps(self, compile_fn: CompileFn) -> None:
        self.transformer.compile_steps(compile_fn)

    def step(self, state: State, action: Tensor) -> State:
        """Predict the next frame."""
        memory = state.memory
        assert isinstance(memory, LlamaMemory)
        if self.config.decoding == "parallel":
            return self._step_parallel(state, memory, action)
        return self._step_autoregressive(state, memory, action)

    def pack(self, state: State) -> dict[str, Tensor]:
        from models.dynamics.llama_packed import pack  # what only an export needs

        return pack(self, state)

    def step_packed(
        self, packed: dict[str, Tensor], action: Tensor
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        from models.dynamics.llama_packed import step_packed

        return step_packed(self, packed, action)

    def _step_parallel(self, state: State, memory: LlamaMemory, action: Tensor) -> State:
        latents = torch.cat([memory.latents, state.latents[:, None]], dim=1)
        actions = torch.cat([memory.actions, action[:, None]], dim=1)
        out, cache = self.blocks(latents, actions, [*memory.has_action, True], memory.cache)
        codes = self.sampling.sample(self.logits(out[:, -1, 1:], state.latents))
        return self._make_state(codes, out[:, -1, 0], cache, memory)

    def _step_autoregressive(self, state: State, memory: LlamaMemory, action: Tensor) -> State:
        cache = memory.cache or self.transformer.empty_cache(memory.latents)
        if memory.has_action:
            _, cache = self.blocks(memory.latents, memory.actions, memory.has_action, cache)
        static_cache = self.transformer.make_static_cache(cache)
        token = self.action_emb(action)[:, None]
        pointer_tokens = self.pointer_emb(action) if self.pointer_emb else None
        prev_codes = state.latents.unflatten(1, (-1, self.latents.num_codebooks))
        codes = []
        for position in range(self.latents.num_patches + 1):
            out = self.transformer.decode_token(token, static_cache, position)
            if position == self.latents.num_patches:
                break
            code = self.sampling.sample(self.logits(out, prev_codes[:, position]))
            codes.append(code)
            token = self._embed(code, slice(position, position + 1))
            if pointer_tokens is not None:
                token = token + pointer_tokens[:, position : position + 1]
        cache = self.transformer.append_block(static_cache)
        return self._make_state(torch.cat(codes, dim=1), out[:, 0], cache, memory)

    def _make_state(
        self, codes: Tensor, summary: Tensor, cache: Cache, memory: LlamaMemory
    ) -> State:
        if self.config.rewards:
            reward = self.reward_head(summary)
            continues = torch.sigmoid(self.continue_head(summary)[..., 0].float())
        else:
            reward = torch.zeros(len(codes), device=codes.device)
            continues = torch.ones(len(codes), device=codes.device)
        empty = LlamaMemory(cache, memory.latents[:, :0], memory.actions[:, :0], [])
        return State(codes, reward, continues, empty)

    # -- pieces -----------------------------------------------------------------------------

    def blocks(
        self, latents: Tensor, actions: Tensor, has_action: list[bool], cache: Cache | None = None
    ) -> tuple[Tensor, Cache]:
        """latents (B, T, N), the action of each block (B, T, A) -> outputs (B, T, 1 + P, D)."""
        action_tokens = self.action_emb(actions)
        patches = self._embed(latents, slice(None))
        pointer_tokens = (
            self.pointer_emb(actions) if self.pointer_emb else torch.zeros_like(patches)
        )
        if not has_action[0]:  # only the oldest block can lack one
            no_action = self.no_action.to(action_tokens.dtype).expand_as(action_tokens[:, :1])
            action_tokens = torch.cat([no_action, action_tokens[:, 1:]], dim=1)
            pointer_tokens = torch.cat(
                [torch.zeros_like(pointer_tokens[:, :1]), pointer_tokens[:, 1:]], dim=1
            )
        x = torch.cat([action_tokens[:, :, None], patches + pointer_tokens], dim=2)
        out, new_cache = self.transformer(rearrange(x, "B T S D -> B (T S) D"), cache)
        return rearrange(out, "B (T S) D -> B T S D", T=latents.shape[1]), new_cache

    def _embed(self, latents: Tensor, positions: slice) -> Tensor:
        """(..., N) -> (..., P, D), for the patches at `positions`."""
        code_embs = self.code_emb(flat_ids(latents, self.latents)).sum(-2)
        return self.input_proj(self.vectors(latents)) + code_embs + self.pos_emb[positions]
