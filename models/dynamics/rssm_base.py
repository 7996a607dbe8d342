"""What every RSSM is as a dynamics model, whatever it reads and draws.

Letters: B clips, T frames, E embedding width, H width of the recurrent state h, G groups of C
classes of the stochastic state z, F = H + G C.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor, nn

from data.actions import ActionSpec
from data.batch import Batch
from data.ranges import CheckedConfig, Range
from models.dynamics.action_blocks import ActionBlocks
from models.dynamics.dynamics import Dynamics, State
from models.dynamics.rssm_cell import ChoiceOfZ, Dense, Posteriors, RssmCell
from models.dynamics.rssm_inverse import InverseDynamics
from models.layers.categorical_groups import choose, kl_balance
from models.layers.heads import TwoHot
from models.layers.sampling import Sampling
from models.method import Losses
from models.tokenizers.tokenizer import LatentSpec


@dataclass(frozen=True)
class RssmBaseConfig(CheckedConfig):
    deter_dim: Annotated[int, Range(8, 2**16)] = 512
    """Width of the recurrent state h."""
    num_groups: Annotated[int, Range(1, 1024)] = 32
    """Categorical variables of the stochastic state z."""
    num_classes: Annotated[int, Range(2, 1024)] = 16
    """Classes of each."""
    hidden_dim: Annotated[int, Range(8, 2**14)] = 128
    """Width of the layers between h, z and the action, and of the heads."""
    num_blocks: Annotated[int, Range(1, 256)] = 8
    """Blocks of the recurrent layers; divides `deter_dim`."""
    embed_dim: Annotated[int, Range(1, 2**14)] = 256
    """Width of what the posterior reads of a frame."""
    sample_posterior: bool = True
    """Sample z of a frame in training, as the paper does.  Else its likeliest classes are taken,
    with the gradient of their probabilities: without noise a decoder learns sooner."""
    expect_posterior: bool = False
    """Train with the expected z of a frame, the probabilities of its classes, as rollouts have it:
    a precise vector, whose classes say little when they are sampled.  `sample_posterior` is then
    without effect."""
    absolute: bool = False
    """Infer z from the frame alone, without h: what a frame shows is then in its z, also where h
    knows it, and z of a goal is what it is within an episode."""
    residual_prior: bool = False
    """Predict the change of z, in logits, rather than z: what stands still is then predicted
    without a weight that has learned it, over any number of steps."""
    inverse_weight: Annotated[float, Range(0, 10**6)] = 0.0
    """Weight of reading the action between two frames from their z, which then hold what it moves,
    however small.  Of an `absolute` z alone: another knows the action.  0 leaves it out."""
    dynamics_weight: Annotated[float, Range(0, 10**6)] = 1.0
    """Weight of the KL that moves the prior to the posterior."""
    representation_weight: Annotated[float, Range(0, 10**6)] = 0.1
    """Weight of the KL that moves the posterior to the prior."""
    free_nats: Annotated[float, Range(0, 10**6)] = 1.0
    """KL of a frame, all groups together, below which there is nothing to gain."""
    first_frames: Annotated[int, Range(0, 10**4)] = 0
    """Frames of a clip, evenly apart, that are also drawn as if each began an episode: goals are
    encoded so, which only the first frame of a clip teaches otherwise.  0 leaves it out."""
    overshooting: Annotated[int, Range(0, 10**4)] = 0
    """Steps of a rollout from some frame of each clip, whose frames, rewards and ends are learned,
    too: else the model is only ever trained one step ahead.  0 leaves it out."""
    rewards: bool = True
    """Learn a reward and a continue head."""
    frameskip: Annotated[int, Range(1, 1000)] = 1
    """Actions from one state to the next, which are then one: what is far ahead is fewer steps
    away."""
    context_frames: Annotated[int, Range(1, 10**4)] = 5
    """Real frames that it enters with, `frameskip` apart, where there are as many."""
    clip_length: Annotated[int, Range(2, 10**4)] = 32
    """Frames of a training clip."""

    ADDED: ClassVar[frozenset[str]] = frozenset(
        {
            "first_frames",
            "overshooting",
            "absolute",
            "expect_posterior",
            "inverse_weight",
            "residual_prior",
            "frameskip",
        }
    )

    @property
    def choice_of_z(self) -> ChoiceOfZ:
        """z of a frame in training."""
        if self.expect_posterior:
            return "expected"
        return "sampled" if self.sample_posterior else "likeliest"

    def check(self) -> None:
        super().check()
        if self.inverse_weight and not self.absolute:
            raise ValueError(
                f"--inverse-weight {self.inverse_weight} has no use for a z that is inferred with "
                f"h, which knows the action; add --absolute, or give 0"
            )
        if (self.clip_length - 1) % self.frameskip:
            raise ValueError(
                f"--clip-length {self.clip_length} is not a multiple of --frameskip "
                f"{self.frameskip}, plus 1; give such a number"
            )
        if self.deter_dim % self.num_blocks:
            raise ValueError(
                f"--deter-dim {self.deter_dim} is not divisible by --num-blocks "
                f"{self.num_blocks}; change one of them"
            )


@dataclass
class NoMemory:
    """An RSSM's state is all that it remembers."""

    def select(self, index: Tensor) -> NoMemory:
        return self


@dataclass
class BlockMemory:
    """The state that the block of actions began at, (B, 1, F), and its actions, (B, j, A)."""

    start: Tensor
    pending_actions: Tensor  # j < frameskip

    def select(self, index: Tensor) -> BlockMemory:
        return BlockMemory(self.start[index], self.pending_actions[index])


class RssmBase(Dynamics):
    """A recurrent state h, and a stochastic state z that is inferred with a frame (posterior) or
    predicted without one (prior).

    Its State's latents are h and z, (B, 1, F).  By default z is its expectation, the classes'
    probabilities: futures that may be are averaged, which is nearest to the truth on the mean, and
    an action has a gradient.  `sampling` takes the likeliest classes, or samples them as training
    does.
    """

    config: RssmBaseConfig
    sampling: Sampling | None

    def __init__(self, config: RssmBaseConfig, actions: ActionSpec) -> None:
        super().__init__()
        self.actions, self.sampling = actions, None
        self.context = (config.context_frames - 1) * config.frameskip + 1
        self.has_rewards = config.rewards
        blocks = None
        if config.frameskip > 1:
            blocks = ActionBlocks(actions, config.frameskip, config.hidden_dim)
        self.cell = RssmCell(
            config.deter_dim, config.num_groups, config.num_classes, config.hidden_dim,
            config.num_blocks, config.embed_dim, actions, config.choice_of_z, config.absolute,
            config.residual_prior, blocks,
        )  # fmt: skip
        stoch_dim = config.num_groups * config.num_classes
        if config.inverse_weight:
            self.inverse = InverseDynamics(stoch_dim, config.hidden_dim, actions)
        feature_dim = config.deter_dim + stoch_dim
        self.spec = LatentSpec("continuous", (1, 1), feature_dim)
        if config.rewards:
            hidden_dim = config.hidden_dim
            self.reward_in, self.reward_head = Dense(feature_dim, hidden_dim), TwoHot(hidden_dim)
            self.continue_in = Dense(feature_dim, hidden_dim)
            self.continue_head = nn.Linear(hidden_dim, 1)
            nn.init.zeros_(self.continue_head.weight)
            nn.init.zeros_(self.continue_head.bias)

    @property
    def clip_length(self) -> int:
        return self.config.clip_length

    @property
    def blocks(self) -> ActionBlocks | None:
        """What makes one action of several, where it does."""
        embedding = self.cell.action_emb[0]
        return embedding if isinstance(embedding, ActionBlocks) else None

    @property
    def state_spec(self) -> LatentSpec:
        return self.spec

    @abstractmethod
    def embed(self, latents: Tensor) -> Tensor:
        """What it reads, (..., N) codes or (..., P, D) -> (..., E)."""

    @abstractmethod
    def reconstruction_loss(
        self, features: Tensor, target: Tensor, weight: Tensor | None
    ) -> Tensor:
        """features (B, T, F), what is drawn of them (B, T, ...), and how much each number counts ->
        the sum over a frame, its mean over frames: ()."""

    # -- training ---------------------------------------------------------------------------

    def sequence_loss(
        self, embeds: Tensor, target: Tensor, batch: Batch, weight: Tensor | None = None
    ) -> Losses:
        """The model's losses (DreamerV3, equation 4): embeddings (B, T, E), what they are of, (B,
        T, ...), and how much each of its numbers counts.

        `is_first` in the batch's extra, (B, T) bool, marks frames that begin an episode; without
        it a clip is one episode's.  No statistic is of the (micro-)batch.
        """
        (actions,) = batch.require("actions")
        is_first = batch.extra.get("is_first")
        followed = self.cell(embeds, actions, is_first)
        losses = self.losses_of(followed, target, batch, weight)
        if self.config.inverse_weight and embeds.shape[1] > 1:
            z = followed.features[..., self.config.deter_dim :]
            last = actions if self.blocks is None else self.blocks.last(actions)
            error = self.inverse.loss(z, last, is_first)
            losses["inverse"] = self.config.inverse_weight * error
        losses |= self.first_frame_losses(embeds, target, weight)
        return losses | self.overshooting_losses(followed.features, target, batch, weight)

    def first_frame_losses(
        self, embeds: Tensor, target: Tensor, weight: Tensor | None = None
    ) -> Losses:
        """The error of frames (B, T, ...) of which nothing but their embeddings is known."""
        length, count = embeds.shape[1], self.config.first_frames
        if not count:
            return {}
        drawn = min(count, length)
        each = torch.arange(drawn, device=embeds.device) * length // drawn
        features = self.cell.infer_first(embeds[:, each])
        weight = None if weight is None else weight[:, each]
        return {"first_frames": self.reconstruction_loss(features, target[:, each], weight)}

    def losses_of(
        self, followed: Posteriors, target: Tensor, batch: Batch, weight: Tensor | None = None
    ) -> Losses:
        """Losses of frames that were followed, the mean over all of them."""
        config = self.config
        features, posterior, prior = followed
        dynamics, representation, kl = kl_balance(posterior, prior, config.free_nats)
        losses = {
            "reconstruction": self.reconstruction_loss(features, target, weight),
            "dynamics_kl": config.dynamics_weight * dynamics.mean(),
            "representation_kl": config.representation_weight * representation.mean(),
            "kl": kl.mean(),
        }
        return losses | self.head_losses(features, batch)

    def head_losses(self, features: Tensor, batch: Batch) -> Losses:
        """Of rewards and ends (B, T), where the data has them, read from states (B, T, F)."""
        losses = {}
        if self.config.rewards and batch.rewards is not None:
            error = self.reward_head.loss(self.reward_in(features), batch.rewards)
            losses["reward"] = error.mean()
        if self.config.rewards and batch.continues is not None:
            logits = self.continue_head(self.continue_in(features))[..., 0].float()
            losses["continue"] = nn.functional.binary_cross_entropy_with_logits(
                logits, batch.continues.float()
            )
        return losses

    def overshooting_losses(
        self, features: Tensor, target: Tensor, batch: Batch, weight: Tensor | None = None
    ) -> Losses:
        """Of the true frames that a rollout with expected z comes to, from one state of each clip
        (observation overshooting: Amos et al., arXiv:1804.06318; Hafner et al., arXiv:1811.04551,
        section 4).

        features: (B, T, F), of states that have seen their frames.
        """
        (actions,) = batch.require("actions")
        length, steps = target.shape[1], min(self.config.overshooting, target.shape[1] - 1)
        if not steps:
            return {}
        rows = torch.arange(len(target), device=target.device)
        starts = torch.randint(length - steps, rows.shape, device=target.device)
        states = [features[rows, starts]]
        h, z = self._split(states[0][:, None])
        for k in range(steps):
            h = self.cell.advance(h, z, actions[rows, starts + k])
            z = self.cell.prior(h, z).flatten(1)
            states.append(torch.cat([h, z.to(h.dtype)], dim=-1))
        # a rollout stays where another episode begins
        order = torch.arange(1, steps + 1, device=target.device).expand(len(rows), -1)
        rows = rows[:, None]
        if (is_first := batch.extra.get("is_first")) is not None:
            order = (
                (~is_first[rows, starts[:, None] + order]).cumprod(1).sum(1, True).minimum(order)
            )
        imagined, at = torch.stack(states, dim=1)[rows, order], starts[:, None] + order
        weight = None if weight is None else weight[rows, at]
        losses = self.head_losses(imagined, batch.map(lambda values: values[rows, at]))
        losses["reconstruction"] = self.reconstruction_loss(imagined, target[rows, at], weight)
        return {f"overshooting_{name}": value for name, value in losses.items()}

    # -- rollouts ---------------------------------------------------------------------------

    def start(self, latents: Tensor, actions: Tensor) -> State:
        skip = self.config.frameskip
        first = (latents.shape[1] - 1) % skip  # the last frame is a state
        embeds = self.embed(latents[:, first::skip])
        h = self.cell.first(len(embeds), embeds)
        z = self._choose(self.cell.posterior(h, embeds[:, 0]))
        for t, block in enumerate(actions[:, first:].split(skip, dim=1)[: embeds.shape[1] - 1], 1):
            h = self.cell.advance(h, z, self._as_one(block))
            z = self._choose(self.cell.posterior(h, embeds[:, t]))
        return self._state(h, z)

    def from_state(self, latents: Tensor) -> State:
        return self._state(*self._split(latents))

    def step(self, state: State, action: Tensor) -> State:
        return self.rollout(state, action[:, None])

    def rollout(self, state: State, actions: Tensor) -> State:
        start, actions = self._since_start(state, actions)
        h, z = self._split(start)
        for block in actions.split(self.config.frameskip, dim=1):
            before = h, z
            h = self.cell.advance(h, z, self._as_one(block))
            z = self._choose(self.cell.prior(h, z))
        after = self._within(h, z, before, block)
        if self.config.rewards:  # of the end alone: a planner asks thousands of times
            features = after.latents[:, 0]
            after.reward = self.reward_head(self.reward_in(features))
            logits = self.continue_head(self.continue_in(features))[..., 0]
            after.continues = torch.sigmoid(logits.float())
        return after

    def observe(self, state: State, action: Tensor, latents: Tensor) -> State:
        start, block = self._since_start(state, action[:, None])
        before = self._split(start)
        h = self.cell.advance(*before, self._as_one(block))
        z = self._choose(self.cell.posterior(h, self.embed(latents)))
        return self._within(h, z, before, block)

    def _since_start(self, state: State, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Where the state's block began, (B, 1, F), and the actions since, with new ones."""
        memory = state.memory
        if not isinstance(memory, BlockMemory):
            return state.latents, actions
        return memory.start, torch.cat([memory.pending_actions, actions], dim=1)

    def _as_one(self, block: Tensor) -> Tensor:
        """(B, j, A) -> what the cell takes as an action."""
        return block[:, 0] if self.blocks is None else self.blocks.pack(block)

    def _within(self, h: Tensor, z: Tensor, before: tuple[Tensor, Tensor], block: Tensor) -> State:
        """The state that a block's actions, (B, j, A), led to from the one before it."""
        after = self._state(h, z)
        if block.shape[1] < self.config.frameskip:
            after.memory = BlockMemory(self._state(*before).latents, block)
        return after

    def _choose(self, probs: Tensor) -> Tensor:
        return choose(probs, self.sampling).flatten(1)

    def _split(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        deter_dim = self.config.deter_dim
        return latents[:, 0, :deter_dim], latents[:, 0, deter_dim:]

    def _state(self, h: Tensor, z: Tensor) -> State:
        ones = torch.ones(len(h), device=h.device)
        latents = torch.cat([h, z.to(h.dtype)], dim=-1)[:, None]
        return State(latents, 0 * ones, ones, NoMemory())
