"""A policy without search, distilled from a search in imagination.

The expert is the best of an imitator's chunks, as the world imagines them
(models/planning/best_of_n.py).  The student starts as that imitator and learns, by flow
matching, to answer at once as the expert does after its search (policy distillation,
arXiv:1511.06295; an expert that plans: Anthony et al., arXiv:1705.08439).  States are those of the
dataset, and those that the expert's decisions lead to from there in imagination, which no
demonstration has.

Letters: B starts, T frames, E decisions of a rollout, H actions of a chunk.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from data.actions import ActionSpec
from data.batch import Batch
from data.ranges import CheckedConfig, Range
from models.controllers.canonical_policy import CanonicalPolicy, CanonicalPolicyConfig
from models.controllers.controller import TrainedController
from models.controllers.flow_policy import FlowPolicy, FlowPolicyConfig
from models.method import Best, Losses
from models.planning.best_of_n import BestOfN, BestOfNConfig
from models.tokenizers.codes import HasCodebooks
from models.tokenizers.tokenizer import LatentSpec


@dataclass(frozen=True)
class DistilledPolicyConfig(CheckedConfig):
    policy: FlowPolicyConfig = field(default_factory=FlowPolicyConfig)
    """The student, filled in by the stage: the imitator that it starts from."""
    state_names: tuple[str, ...] = ()
    """Of an imitator that sees all from its goal (models/controllers/canonical_policy.py): as
    there, filled in by the stage."""
    goal: Annotated[tuple[float, ...], Range(-(10**6), 10**6)] = ()
    """As `state_names`."""
    expert: BestOfNConfig = field(default_factory=BestOfNConfig)
    """The search that it learns from: a choice among what the imitator would do, which is its
    proposer, the flow policy if that is `auto`."""
    num_decisions: Annotated[int, Range(1, 1000)] = 5
    """Decisions of the expert in a row, each where the one before led."""
    num_repeats: Annotated[int, Range(1, 1000)] = 6
    """Times that a decision is learned from in a step, each with other noise."""
    bc_weight: Annotated[float, Range(0, 10**6)] = 0.15
    """Weight of the demonstrations, beside 1 for the expert."""
    latent_noise_std: Annotated[float, Range(0, 10)] = 0.005
    """Noise on the latents in training, in standard deviations of the data: less than an imitator
    needs, since states of imagination are many."""

    ADDED: ClassVar[frozenset[str]] = frozenset({"state_names", "goal"})

    @property
    def imitator(self) -> Literal["flow_policy", "canonical_policy"]:
        """Whose chunks the expert chooses among; ValueError for the student itself, as which it
        gets worse from round to round."""
        if self.expert.proposer == "distilled_policy":
            raise ValueError(
                "--distilled-policy.expert.proposer distilled_policy: a student that is its own "
                "expert gets worse; give flow_policy or canonical_policy"
            )
        return "flow_policy" if self.expert.proposer == "auto" else self.expert.proposer

    def of(self, imitator: FlowPolicyConfig) -> DistilledPolicyConfig:
        """The config of the student of an imitator."""
        names = [f.name for f in fields(FlowPolicyConfig)]
        shape = FlowPolicyConfig(**{name: getattr(imitator, name) for name in names})
        if not isinstance(imitator, CanonicalPolicyConfig):
            return replace(self, policy=shape)
        return replace(self, policy=shape, state_names=imitator.state_names, goal=imitator.goal)

    @property
    def student(self) -> FlowPolicyConfig:
        """The student's own config: the imitator's, with less noise."""
        own = replace(self.policy, latent_noise_std=self.latent_noise_std)
        if not self.state_names:
            return own
        values = {f.name: getattr(own, f.name) for f in fields(own)}
        return CanonicalPolicyConfig(**values, state_names=self.state_names, goal=self.goal)


class DistilledPolicy(TrainedController):
    """A policy of chunks, and how it learns from an expert."""

    needs = frozenset({"latents", "actions"})
    best = Best("regret", higher_is_better=False)

    def __init__(
        self, config: DistilledPolicyConfig, latents: LatentSpec, actions: ActionSpec
    ) -> None:
        super().__init__()
        self.config = config
        student = config.student
        if isinstance(student, CanonicalPolicyConfig):
            self.policy = CanonicalPolicy(student, latents, actions)
        else:
            self.policy = FlowPolicy(student, latents, actions)

    def load_codebook(self, source: HasCodebooks) -> None:
        self.policy.load_codebook(source)

    def loss(self, batch: Batch, expert: BestOfN) -> Losses:
        """Flow matching of what the expert decides, and of demonstrations.

        latents (B, T, N) or (B, T, P, D) and normalized actions (B, T, A): the expert starts at the
        last frame.  `bc_latents` and `bc_actions` in the batch's extra are demonstrated chunks, as
        in `FlowPolicy.loss`.
        """
        latents, chunks = self.decide(batch, expert)
        repeats = self.config.num_repeats
        bc_latents, bc_actions = batch.require("bc_latents", "bc_actions")

        def imitate(latents: Tensor, chunk: Tensor) -> Tensor:
            repeated = (x.repeat_interleave(repeats, 0) for x in (latents, chunk.float()))
            return self.policy.imitate(*repeated)["flow_matching"]

        bc = self.config.bc_weight * imitate(bc_latents[:, 0], bc_actions)
        return {"flow_matching": imitate(latents, chunks), "bc": bc}

    @torch.no_grad()
    def decide(self, batch: Batch, expert: BestOfN) -> tuple[Tensor, Tensor]:
        """Let the expert decide, and go on where it leads: latents (B E, N) or (B E, P, D), and its
        chunks, (B E, H, A)."""
        latents, actions = batch.require("latents", "actions")
        state = expert.world.start_from(latents, actions[:, : latents.shape[1] - 1])
        seen, chunks = [], []
        for _ in range(self.config.num_decisions):
            found = expert.search(state, expert.sample_noise(len(state)).to(latents.device))
            seen.append(state.latents)
            chunks.append(found.chunk)
            state = found.state
        return torch.cat(seen), torch.cat(chunks)

    @torch.no_grad()
    def validate(self, held_out: Batch, expert: BestOfN) -> dict[str, float]:
        """`regret`: how much more the student's likeliest chunks cost than the expert's, at
        held-out starts; `imitator_regret`: the same of what it began as."""
        latents, actions = held_out.require("latents", "actions")
        state = expert.world.start_from(latents, actions[:, : latents.shape[1] - 1])
        noise = expert.sample_noise(len(state)).to(latents.device)
        student = BestOfN(expert.config, expert.world, self.policy, expert.objective, expert.block)
        found = {
            "expert": expert.search(state, noise),
            "imitator": expert.search(state, noise.likeliest()),
            "student": student.search(state, noise.likeliest()),
        }
        costs = {name: float(each.cost.mean()) for name, each in found.items()}
        return {
            "regret": costs["student"] - costs["expert"],
            "imitator_regret": costs["imitator"] - costs["expert"],
            "expert_cost": costs["expert"],
        }
