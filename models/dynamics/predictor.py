"""Dynamics over continuous latents, a frame at once and several actions a step of the model.

A block-causal transformer reads, for each of the last few anchor frames, its latents with the
`skip` actions that follow, and foretells the next anchor (DINO-WM, arXiv:2411.04983; LeWorldModel,
arXiv:2603.19312).  From outside it is a model like any other, one action a step: between two
anchors it foretells the frame after the actions that are there so far.

Letters: B clips, T frames, C anchors in view, P patches, D latent width, A action numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from einops import rearrange
from torch import Tensor, nn

from data.actions import ActionSpec
from models.dynamics.dynamics import State
from models.layers.compile_fn import Compiler
from models.layers.embeddings import BlockEmbedding
from models.layers.heads import TwoHot
from models.layers.transformer import Cache, Transformer, TransformerConfig
from models.tokenizers.tokenizer import Latents, Tokenizer


@dataclass(frozen=True)
class PredictorConfig:
    transformer: TransformerConfig = field(
        default_factory=lambda: TransformerConfig(
            width=192, layers=6, heads=6, hidden=512, context=3, dropout=0.1
        )
    )
    """Its context counts anchors."""
    skip: int = 5
    """Actions from one anchor to the next (the field's frame-skip)."""
    imagined: float = 1.0
    """Weight of the loss from the model's own anchors, beside 1 for that from true ones."""
    rewards: bool = True
    """Learn a reward and a continue head."""
    reward_weight: float = 0.1

    def __post_init__(self) -> None:
        if self.skip < 1:
            raise ValueError(f"a skip of {self.skip} actions is none; --model.skip starts at 1")
        if not self.imagined >= 0:
            raise ValueError(
                f"--model.imagined {self.imagined} is no weight; 0 leaves that loss out"
            )


@dataclass
class PredictorMemory:
    """The blocks before the last anchor, that anchor (B, P, D), and what was done since."""

    cache: Cache | None
    anchor: Tensor
    since: Tensor  # (B, j, A), j < skip

    def select(self, index: Tensor) -> PredictorMemory:
        cache = self.cache.select(index) if self.cache else None
        return PredictorMemory(cache, self.anchor[index], self.since[index])


class Predictor(nn.Module):
    """Predict the latents of the frame after a block of actions."""

    counts: Tensor
    nothing: Tensor
    certain: Tensor

    def __init__(self, config: PredictorConfig, latents: Latents, actions: ActionSpec) -> None:
        super().__init__()
        if latents.kind != "continuous":
            raise ValueError("this dynamics model predicts vectors, but the tokenizer makes codes")
        self.config, self.latents, self.actions = config, latents, actions
        self.skip = config.skip
        self.anchors = config.transformer.context
        self.context = (self.anchors - 1) * self.skip + 1
        self.has_rewards = config.rewards
        width = config.transformer.width
        rows, columns = latents.grid
        places = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).float()
        self.look = nn.Linear(latents.width, width)
        self.place = nn.Parameter(0.02 * torch.randn(latents.patches, width))
        self.block = BlockEmbedding(actions, self.skip, width)
        self.transformer = Transformer(config.transformer, places, causal_inside=False)
        self.change = nn.Linear(width, latents.width)
        nn.init.zeros_(self.change.weight)  # the first guess is that all stays as it is
        nn.init.zeros_(self.change.bias)
        # a step of imagination reads these where it would fill in numbers anew: launches, on a GPU
        self.register_buffer("counts", torch.arange(self.skip + 1), persistent=False)
        self.register_buffer("nothing", torch.zeros(()), persistent=False)
        self.register_buffer("certain", torch.ones(()), persistent=False)
        if config.rewards:
            self.reward = TwoHot(width)
            self.goes_on = nn.Linear(width, 1)

    def adopt(self, tokenizer: Tokenizer) -> None:
        """Continuous latents are read as they are."""

    # -- training ---------------------------------------------------------------------------

    def loss(
        self,
        latents: Tensor,
        actions: Tensor,
        rewards: Tensor | None = None,
        continues: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Squared error of the next anchors, from true anchors and from the model's own.

        As a share of that of staying: whatever the latents' scale, 1 is to have learnt nothing,
        and the other heads do not drown it.

        latents (B, T, P, D) with T = n skip + 1 frames.  The last block of a clip holds any number
        of actions from 1 to skip, so that every number is learnt.
        """
        blocks = (latents.shape[1] - 1) // self.skip
        if blocks < 1 or latents.shape[1] != blocks * self.skip + 1:
            raise ValueError(
                f"a clip of {latents.shape[1]} frames does not part into blocks of {self.skip}; "
                f"give --frames a multiple of {self.skip}, plus 1"
            )
        count = torch.full((len(latents), blocks), self.skip, device=latents.device)
        count[:, -1] = torch.randint(1, self.skip + 1, (len(latents),), device=latents.device)
        starts = torch.arange(blocks, device=latents.device) * self.skip
        rows = torch.arange(len(latents), device=latents.device)[:, None]
        arrived = starts + count  # (B, blocks): the frame that each block leads to
        done = actions[:, : blocks * self.skip].unflatten(1, (blocks, self.skip))
        anchors, target = latents[:, starts], latents[rows, arrived]

        guess, out = self.foretell(anchors, done, count)
        stayed = nn.functional.mse_loss(anchors.float(), target.float()).clamp(min=1e-8)
        losses = {"latents": nn.functional.mse_loss(guess.float(), target.float()) / stayed}
        if blocks > 1 and self.config.imagined:
            own = torch.cat([anchors[:, :1], guess[:, :-1]], dim=1)
            again, _ = self.foretell(own, done, count)
            surprise = nn.functional.mse_loss(again[:, 1:].float(), target[:, 1:].float())
            losses["own"] = self.config.imagined * surprise / stayed
        if self.config.rewards and rewards is not None:
            surprise = self.reward.loss(out.mean(2), rewards[rows, arrived]).mean()
            losses["reward"] = self.config.reward_weight * surprise
        if self.config.rewards and continues is not None:
            surprise = nn.functional.binary_cross_entropy_with_logits(
                self.goes_on(out.mean(2))[..., 0].float(), continues[rows, arrived].float()
            )
            losses["continue"] = self.config.reward_weight * surprise
        return losses

    # -- imagination ------------------------------------------------------------------------

    def start(self, latents: Tensor, actions: Tensor) -> State:
        """latents (B, T, P, D), actions (B, T - 1, A) -> state at the last frame, an anchor."""
        blocks = min((latents.shape[1] - 1) // self.skip, self.anchors - 1)
        latents = latents[:, -(blocks * self.skip + 1) :]
        cache = None
        if blocks:
            done = actions[:, actions.shape[1] - blocks * self.skip :]
            done = done.unflatten(1, (blocks, self.skip))
            count = torch.full((len(latents), blocks), self.skip, device=latents.device)
            x = self._tokens(latents[:, : -1 : self.skip], done, count)
            cache = self.transformer(rearrange(x, "B C P W -> B (C P) W"), None)[1]
        rows = torch.ones(len(latents), device=latents.device)
        memory = PredictorMemory(cache, latents[:, -1], self._nothing(latents))
        return State(latents[:, -1], 0 * rows, rows, memory)

    def step(self, state: State, action: Tensor) -> State:
        """Imagine the next frame."""
        return self.rollout(state, action[:, None])

    def rollout(self, state: State, actions: Tensor) -> State:
        """Imagine what actions, (B, T, A), lead to in the end: a step of the model a block."""
        while actions.shape[1]:
            memory = state.memory
            assert isinstance(memory, PredictorMemory)
            taken = self.skip - memory.since.shape[1]
            state = self._jump(memory, actions[:, :taken])
            actions = actions[:, taken:]
        return state

    def observe(self, state: State, action: Tensor, latents: Tensor) -> State:
        """latents: (B, P, D), what `action` has really led to."""
        memory = state.memory
        assert isinstance(memory, PredictorMemory)
        rows = torch.ones(len(latents), device=latents.device)
        since = torch.cat([memory.since, action[:, None]], dim=1)
        if since.shape[1] < self.skip:
            memory = replace(memory, since=since)
        else:
            cache = self._run(memory, since)[2]
            memory = PredictorMemory(cache, latents, self._nothing(latents))
        return State(latents, 0 * rows, rows, memory)

    def _jump(self, memory: PredictorMemory, actions: Tensor) -> State:
        since = torch.cat([memory.since, actions], dim=1)
        out, guess, cache = self._run(memory, since)
        if since.shape[1] < self.skip:
            memory = replace(memory, since=since)
        else:
            memory = PredictorMemory(cache, guess, self._nothing(guess))
        if self.config.rewards:
            reward = self.reward(out.mean(1))
            continues = torch.sigmoid(self.goes_on(out.mean(1))[..., 0].float())
        else:
            reward, continues = (one.expand(len(guess)) for one in (self.nothing, self.certain))
        return State(guess, reward, continues, memory)

    def compile_steps(self, compiler: Compiler) -> None:
        """Compile all of a step, the reading of its actions too: 122 instead of 137 ms for 300
        candidates on two cores."""
        self._read = compiler(self, self._read)

    # -- pieces -----------------------------------------------------------------------------

    def _run(self, memory: PredictorMemory, since: Tensor) -> tuple[Tensor, Tensor, Cache]:
        """Read the last anchor with the actions since: outputs (B, P, W), the next frame's latents
        (B, P, D), the cache with the anchor in."""
        done = since
        if since.shape[1] < self.skip:
            done = since.new_zeros(len(since), self.skip, *self.actions.shape)
            done[:, : since.shape[1]] = since
        count = self.counts[since.shape[1]].expand(len(since), 1)
        return self._read(memory.anchor, done[:, None], count, memory.cache)

    def _read(
        self, anchor: Tensor, done: Tensor, count: Tensor, cache: Cache | None
    ) -> tuple[Tensor, Tensor, Cache]:
        """As `_run`, of shapes that do not change with how much was done."""
        tokens = self._tokens(anchor[:, None], done, count)[:, 0]
        out, grown = self.transformer(tokens, cache)
        return out, anchor + self.change(out).to(anchor.dtype), grown

    def foretell(self, anchors: Tensor, done: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        """Anchors (B, C, P, D), their blocks (B, C, skip, A) -> the next (B, C, P, D), outputs."""
        x = self._tokens(anchors, done, count)
        out, _ = self.transformer(rearrange(x, "B C P W -> B (C P) W"))
        out = rearrange(out, "B (C P) W -> B C P W", P=self.latents.patches)
        return anchors + self.change(out).to(anchors.dtype), out

    def _tokens(self, anchors: Tensor, done: Tensor, count: Tensor) -> Tensor:
        spoken = self.block(done, count)[:, :, None]
        return self.look(anchors) + spoken + self.place

    def _nothing(self, like: Tensor) -> Tensor:
        kind = torch.float32 if self.actions.kind == "continuous" else torch.int64
        return torch.zeros(len(like), 0, *self.actions.shape, dtype=kind, device=like.device)
