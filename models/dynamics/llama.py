"""Dynamics as a Llama-style transformer over interleaved frame and action tokens.

Two ways of decoding the next frame:
  frame  a block is [a_t, z_t]; its outputs at the patches are z_{t+1}, all at once;
  token  a block is [a_{t-1}, z_t]; each output is the next token, one by one.

A patch may have several codes (product quantisation): they are read and foretold together.

Letters: B clips, T frames, P patches, N codes a frame, K codes of a codebook, D width, A action
numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from data.actions import ActionSpec
from kernels import linear_cross_entropy
from models.dynamics.dynamics import State
from models.layers.compile_fn import Compiler
from models.layers.embeddings import ActionEmbedding, PointerEmbedding
from models.layers.heads import TwoHot
from models.layers.sampling import Sampling
from models.layers.transformer import Cache, Transformer, TransformerConfig
from models.tokenizers.codes import CodeVectors, numbered
from models.tokenizers.tokenizer import Latents, Tokenizer


@dataclass(frozen=True)
class LlamaConfig:
    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    decoding: Literal["frame", "token"] = "frame"
    """A whole frame at once, or token by token."""
    change_weight: float = 5.0
    """Weight of a patch whose code changes, beside 1 for one that stays: most stay, and a model
    that copies would be right nearly everywhere."""
    imagined: float = 0.25
    """Share of training clips whose later frames are the model's own, as they will be in
    imagination (frame decoding only)."""
    rewards: bool = True
    """Learn a reward and a continue head."""
    reward_weight: float = 0.1
    """Weight of the two heads' losses: at 1 their gradient drowns that of the codes."""

    def __post_init__(self) -> None:
        if not 0 <= self.imagined <= 1:
            raise ValueError(
                f"--model.imagined {self.imagined} is no share of the clips; give 0 to 1"
            )


@dataclass
class LlamaMemory:
    """The cache, and the blocks that it does not hold yet: frames (B, P, N) with the action of
    their block (B, P, A).  `given` is False where a block has no action (a first frame)."""

    cache: Cache | None
    latents: Tensor
    actions: Tensor
    given: list[bool]

    def select(self, index: Tensor) -> LlamaMemory:
        cache = self.cache.select(index) if self.cache else None
        return LlamaMemory(cache, self.latents[index], self.actions[index], self.given)

    def append(self, latents: Tensor, action: Tensor, given: bool, limit: int) -> LlamaMemory:
        """Add a block; with `limit` blocks waiting, what lies before them is forgotten."""
        waiting = torch.cat([self.latents, latents[:, None]], dim=1)[:, -limit:]
        actions = torch.cat([self.actions, action[:, None]], dim=1)[:, -limit:]
        cache = None if len(self.given) + 1 >= limit else self.cache
        return LlamaMemory(cache, waiting, actions, [*self.given, given][-limit:])


class LlamaDynamics(nn.Module):
    """Predict the codes of the next frame."""

    def __init__(self, config: LlamaConfig, latents: Latents, actions: ActionSpec) -> None:
        super().__init__()
        if latents.kind != "discrete":
            raise ValueError("this dynamics model predicts codes, but the tokenizer has none")
        self.config, self.latents, self.actions = config, latents, actions
        self.context = config.transformer.context
        self.has_rewards = config.rewards
        self.sampling = Sampling()
        width = config.transformer.width

        self.vectors = CodeVectors(latents)
        self.look = nn.Linear(latents.width, width)
        self.name = nn.Embedding(latents.codebooks * latents.codes, width)
        nn.init.zeros_(self.name.weight)
        self.place = nn.Parameter(0.02 * torch.randn(latents.patches, width))
        self.action = ActionEmbedding(actions, width)
        if config.decoding == "token":  # a first frame has no action that led to it
            self.no_action = nn.Parameter(0.02 * torch.randn(width))
        self.pointer = PointerEmbedding(latents.grid, width) if actions.pointer else None

        rows, columns = latents.grid
        places = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).float()
        centre = places.mean(0, keepdim=True)
        self.transformer = Transformer(
            config.transformer,
            places=torch.cat([centre, places]),
            causal_inside=config.decoding == "token",
        )
        books, codes, share = self.vectors.book.shape
        self.head_look = nn.Parameter(torch.randn(books, share, width) / (3 * width) ** 0.5)
        self.head_name = nn.Parameter(torch.zeros(books, codes, width))
        self.head_bias = nn.Parameter(torch.zeros(books, codes))
        self.stay = nn.Linear(width, books)
        nn.init.zeros_(self.stay.weight)
        nn.init.constant_(self.stay.bias, 6.0)  # nearly all of 256 codes' share
        if config.rewards:
            self.reward = TwoHot(width)
            self.goes_on = nn.Linear(width, 1)

    def adopt(self, tokenizer: Tokenizer) -> None:
        """Take over the vectors of the tokenizer's codes: they embed the codes, and stay fixed."""
        self.vectors.adopt(tokenizer)

    # -- training ---------------------------------------------------------------------------

    def loss(
        self,
        latents: Tensor,
        actions: Tensor,
        rewards: Tensor | None = None,
        continues: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Cross-entropy of the next codes, and of the heads where the data has them."""
        if self.config.decoding == "frame":
            shown = self._show_own(latents[:, :-1], actions)
            out = self._blocks(shown, actions[:, :-1], [True] * shown.shape[1])[0]
            out, summary = out[:, :, 1:], out[:, :, 0]
        else:
            leading = torch.cat([torch.zeros_like(actions[:, :1]), actions[:, :-1]], dim=1)
            given = [False] + [True] * (latents.shape[1] - 1)
            out = self._blocks(latents, leading, given)[0]
            shown, out, summary = latents[:, :-1], out[:, 1:, :-1], out[:, 1:, -1]
        target = latents[:, 1:]
        entropy, likeliest = self._surprise(out, shown, target)
        changed = latents[:, :-1] != target
        weight = 1 + (self.config.change_weight - 1) * changed.float()
        with torch.no_grad():
            # sums under a mask: indexing by one would wait for the GPU
            right = (likeliest == target) & changed
            share = right.sum() / changed.sum().clamp(min=1)
        losses = {
            # a plain mean: processes and parts of a batch then add up to the whole
            "codes": (entropy * weight).mean(),
            "changed_right": share,
        }
        if self.config.rewards and rewards is not None:
            surprise = self.reward.loss(summary, rewards[:, 1:]).mean()
            losses["reward"] = self.config.reward_weight * surprise
        if self.config.rewards and continues is not None:
            logit = self.goes_on(summary)[..., 0].float()
            surprise = nn.functional.binary_cross_entropy_with_logits(
                logit, continues[:, 1:].float()
            )
            losses["continue"] = self.config.reward_weight * surprise
        return losses

    @torch.no_grad()
    def _show_own(self, shown: Tensor, actions: Tensor) -> Tensor:
        """In the first clips, replace the frames after a random one by predictions from those
        before them: (B, T, N)."""
        rows = round(self.config.imagined * len(shown))
        if not rows or shown.shape[1] == 1:
            return shown
        few, done = shown[:rows], actions[:rows, : shown.shape[1]]
        out = self._blocks(few, done, [True] * few.shape[1])[0]
        own = self._logits(out[:, :-1, 1:], few[:, :-1]).argmax(-1)
        first = torch.randint(1, few.shape[1] + 1, (rows, 1, 1), device=few.device)
        later = torch.arange(1, few.shape[1], device=few.device)[None, :, None] >= first
        mixed = torch.cat([few[:, :1], torch.where(later, own, few[:, 1:])], dim=1)
        return torch.cat([mixed, shown[rows:]])

    # -- imagination ------------------------------------------------------------------------

    def start(self, latents: Tensor, actions: Tensor) -> State:
        """latents (B, T, N), actions (B, T - 1, A) -> state at the last frame."""
        latents, actions = latents[:, -self.context :], actions[:, -(self.context - 1) :]
        if self.context == 1:
            actions = actions[:, :0]
        rows = torch.ones(len(latents), device=latents.device)
        if self.config.decoding == "frame":
            waiting, given = latents[:, :-1], [True] * (latents.shape[1] - 1)
        else:
            waiting, given = latents, [False] + [True] * (latents.shape[1] - 1)
            none = actions.new_zeros(len(latents), 1, *self.actions.shape)
            actions = torch.cat([none, actions], dim=1)
        return State(latents[:, -1], 0 * rows, rows, LlamaMemory(None, waiting, actions, given))

    def observe(self, state: State, action: Tensor, latents: Tensor) -> State:
        """latents: (B, N), what `action` has really led to."""
        memory = state.memory
        assert isinstance(memory, LlamaMemory)
        rows = torch.ones(len(latents), device=latents.device)
        if self.config.decoding == "frame":
            memory = memory.append(state.latents, action, True, self.context - 1)
        else:
            memory = memory.append(latents, action, True, self.context)
        return State(latents, 0 * rows, rows, memory)

    def compile_steps(self, compiler: Compiler) -> None:
        self.transformer.compile_steps(compiler)

    def step(self, state: State, action: Tensor) -> State:
        """Imagine the next frame."""
        memory = state.memory
        assert isinstance(memory, LlamaMemory)
        if self.config.decoding == "frame":
            return self._step_frame(state, memory, action)
        return self._step_token(state, memory, action)

    def rollout(self, state: State, actions: Tensor) -> State:
        """Imagine what actions, (B, T, A), lead to in the end."""
        for action in actions.unbind(1):
            state = self.step(state, action)
        return state

    def _step_frame(self, state: State, memory: LlamaMemory, action: Tensor) -> State:
        latents = torch.cat([memory.latents, state.latents[:, None]], dim=1)
        actions = torch.cat([memory.actions, action[:, None]], dim=1)
        out, cache = self._blocks(latents, actions, [*memory.given, True], memory.cache)
        codes = self.sampling.choose(self._logits(out[:, -1, 1:], state.latents))
        return self._arrive(codes, out[:, -1, 0], cache, memory)

    def _step_token(self, state: State, memory: LlamaMemory, action: Tensor) -> State:
        cache = memory.cache or self.transformer.empty_cache(memory.latents)
        if memory.given:
            _, cache = self._blocks(memory.latents, memory.actions, memory.given, cache)
        draft = self.transformer.draft(cache)
        token = self.action(action)[:, None]
        pointed = self.pointer(action) if self.pointer else None
        before = state.latents.unflatten(1, (-1, self.latents.codebooks))
        codes = []
        for position in range(self.latents.patches + 1):
            out = self.transformer.extend(token, draft, position)
            if position == self.latents.patches:
                break
            code = self.sampling.choose(self._logits(out, before[:, position]))
            codes.append(code)
            token = self._embed(code, slice(position, position + 1))
            if pointed is not None:
                token = token + pointed[:, position : position + 1]
        cache = self.transformer.close(draft)
        return self._arrive(torch.cat(codes, dim=1), out[:, 0], cache, memory)

    def _arrive(self, codes: Tensor, summary: Tensor, cache: Cache, memory: LlamaMemory) -> State:
        if self.config.rewards:
            reward = self.reward(summary)
            continues = torch.sigmoid(self.goes_on(summary)[..., 0].float())
        else:
            reward = torch.zeros(len(codes), device=codes.device)
            continues = torch.ones(len(codes), device=codes.device)
        empty = LlamaMemory(cache, memory.latents[:, :0], memory.actions[:, :0], [])
        return State(codes, reward, continues, empty)

    # -- pieces -----------------------------------------------------------------------------

    def _blocks(
        self, latents: Tensor, actions: Tensor, given: list[bool], cache: Cache | None = None
    ) -> tuple[Tensor, Cache]:
        """latents (B, T, N), the action of each block (B, T, A) -> outputs (B, T, 1 + P, D)."""
        spoken = self.action(actions)
        patches = self._embed(latents, slice(None))
        pointed = self.pointer(actions) if self.pointer else torch.zeros_like(patches)
        if not given[0]:  # only the oldest block can be without
            none = self.no_action.to(spoken.dtype).expand_as(spoken[:, :1])
            spoken = torch.cat([none, spoken[:, 1:]], dim=1)
            pointed = torch.cat([torch.zeros_like(pointed[:, :1]), pointed[:, 1:]], dim=1)
        x = torch.cat([spoken[:, :, None], patches + pointed], dim=2)
        out, after = self.transformer(rearrange(x, "B T S D -> B (T S) D"), cache)
        return rearrange(out, "B (T S) D -> B T S D", T=latents.shape[1]), after

    def _embed(self, latents: Tensor, places: slice) -> Tensor:
        """(..., N) -> (..., P, D), for the patches at `places`."""
        names = self.name(numbered(latents, self.latents)).sum(-2)
        return self.look(self.vectors(latents)) + names + self.place[places]

    def _surprise(self, out: Tensor, before: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy of codes, and the likeliest: (..., P, D), (..., N) -> (..., N) each."""
        books = self.latents.codebooks
        stay = self.stay(out)
        flat = out.flatten(0, -2)
        parts = [
            linear_cross_entropy(flat, row, to.flatten(), bias, since.flatten(), bonus.flatten())
            for row, bias, to, since, bonus in zip(
                self._rows(),
                self.head_bias,
                target.unflatten(-1, (-1, books)).unbind(-1),
                before.unflatten(-1, (-1, books)).unbind(-1),
                stay.unbind(-1),
                strict=True,
            )
        ]
        entropy, likeliest = (
            torch.stack(x, dim=-1).view(target.shape) for x in zip(*parts, strict=True)
        )
        return entropy, likeliest

    def _rows(self) -> Tensor:
        """The last layer, (G, K, D): a code's row is its own and a map of its vector."""
        book = self.vectors.book
        looks = torch.einsum("GKd,GdD->GKD", book, self.head_look)
        return self.head_name + book.shape[-1] ** -0.5 * looks

    def _logits(self, out: Tensor, before: Tensor) -> Tensor:
        """(..., P, D), and the codes that stand there before, (..., N) -> (..., N, K).

        What stays as it was gets a bonus: a model need not learn to copy before it can learn what
        moves.
        """
        rows = self._rows()
        logits = nn.functional.linear(out, rows.flatten(0, 1), self.head_bias.flatten())
        logits = logits.unflatten(-1, rows.shape[:2]).flatten(-3, -2)
        stay = self.stay(out).flatten(-2)[..., None]
        return logits.scatter_add(-1, before[..., None], stay.to(logits.dtype))
