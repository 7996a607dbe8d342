"""A goal-conditioned policy over discrete actions.

It learns from model rollouts and from the dataset.  Several rollouts are sampled from each start.
Those that end nearer to the goal's latents than the others are made likelier (REINFORCE with a
leave-one-out baseline, Kool et al. 2019).  Each rollout is also an example for the goal where it
ended (hindsight experience replay, arXiv:1707.01495).  Codes pass no gradient, so this replaces
`models/controllers/goal_policy.py`, which is for continuous actions.

Letters: B worlds, K samples, H steps, T frames, N codes a frame, P patches, D latent width.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import torch
from torch import Tensor, nn

from data.actions import ActionSpec
from data.batch import Batch
from data.ranges import CheckedConfig, Range
from models.controllers.controller import TrainedController
from models.controllers.policy import PolicyConfig, make_encoder, mlp
from models.dynamics.dynamics import State
from models.layers.distributions import MultiCategorical
from models.method import Best, Losses
from models.planning.plan import Plan
from models.tokenizers.codes import HasCodebooks
from models.tokenizers.tokenizer import LatentSpec
from models.world import World


@dataclass(frozen=True)
class DiscreteGoalPolicyConfig(CheckedConfig):
    encoder: PolicyConfig = field(default_factory=PolicyConfig)
    """The latents' encoder, and the width of the hidden layers."""
    goal_offset: Annotated[int, Range(1, 1000)] = 8
    """Steps from a start to its goal in training."""
    num_samples: Annotated[int, Range(1, 1000)] = 4
    """Rollouts from each start."""
    her_weight: Annotated[float, Range(0, 10**6)] = 0.5
    """Weight of hindsight experience replay: rollouts as examples for their own ends."""
    bc_weight: Annotated[float, Range(0, 10**6)] = 1.0
    """Weight of behavior cloning on the dataset's way to the goal."""
    entropy: Annotated[float, Range(0, 10**6)] = 3e-3
    """Weight of the policy's entropy."""


class DiscreteGoalPolicy(TrainedController):
    """State and goal to a distribution over codes."""

    needs = frozenset({"latents", "actions"})
    best = Best("final_distance", higher_is_better=False)

    def __init__(
        self, config: DiscreteGoalPolicyConfig, latents: LatentSpec, actions: ActionSpec
    ) -> None:
        super().__init__()
        if not actions.factors:
            raise ValueError(
                "a discrete goal policy needs factored discrete actions, and this world's are not; "
                "--preset keypoints has a goal policy for continuous actions"
            )
        self.config, self.actions = config, actions
        self.max_goal_offset = config.goal_offset
        self.horizon = self.action_block = 1
        self.encoder = make_encoder(config.encoder, latents)
        dim = 2 * self.encoder.out_dim
        self.head = nn.Sequential(
            nn.Dropout(config.encoder.dropout),
            mlp(dim, config.encoder.hidden_dim, sum(actions.factor_sizes)),
        )

    def load_codebook(self, source: HasCodebooks) -> None:
        self.encoder.load_codebook(source)

    def distribution(self, latents: Tensor, goal: Tensor) -> MultiCategorical:
        """latents, goal (B, N) -> a distribution over codes, (B,)."""
        features = torch.cat([self.encoder(latents), self.encoder(goal)], dim=-1)
        return MultiCategorical(self.head(features).float(), self.actions)

    def plan(
        self,
        state: State,
        goal: Tensor,
        last_action: Tensor | None,
        warm_start: Tensor | None = None,
        stalls: Tensor | None = None,
    ) -> Plan:
        """Plan one step: the likeliest code.  Its cost is minus its log-probability."""
        dist = self.distribution(state.latents, goal)
        code = dist.mode
        return Plan(code[:, None], code[:, None, None], -dist.log_prob(code))

    def loss(self, batch: Batch, world: World) -> Losses:
        """latents (B, T, N), action codes (B, T).

        The goal is the last frame, the start is frame T - 1 - H, and its history is before it.
        """
        latents, actions = batch.require("latents", "actions")
        start = latents.shape[1] - 1 - self.max_goal_offset
        goal = latents[:, -1]
        state = world.start_from(latents[:, : start + 1], actions[:, :start])
        rollouts = state.repeat(self.config.num_samples)
        goals = goal.repeat_interleave(self.config.num_samples, 0)
        rollout_latents, rollout_actions = [], []
        with torch.no_grad():
            for _ in range(self.max_goal_offset):
                action = self.distribution(rollouts.latents, goals).sample()
                rollout_latents.append(rollouts.latents)
                rollout_actions.append(action)
                rollouts = world.step_from(rollouts, action)
            initial_distance = self._latent_mse(world, state.latents, goal).mean().clamp(min=1e-6)
            final_distance = self._latent_mse(world, rollouts.latents, goals) / initial_distance
            final_distance = final_distance.view(-1, self.config.num_samples)  # (B, K)
            baseline = (final_distance.sum(1, keepdim=True) - final_distance) / max(
                1, self.config.num_samples - 1
            )
            advantage = (baseline - final_distance).flatten()
            advantage = advantage / advantage.std().clamp(min=1e-3)
        visited, sampled_actions = torch.cat(rollout_latents), torch.cat(rollout_actions)
        dist = self.distribution(visited, torch.cat([goals] * self.max_goal_offset))
        entropy = dist.entropy().mean()
        policy_gain = (
            dist.log_prob(sampled_actions) * advantage.repeat(self.max_goal_offset)
        ).mean()
        her_dist = self.distribution(visited, torch.cat([rollouts.latents] * self.max_goal_offset))
        demo_latents = latents[:, start:-1].flatten(0, 1)
        bc_dist = self.distribution(demo_latents, goal.repeat_interleave(self.max_goal_offset, 0))
        bc_loss = -bc_dist.log_prob(actions[:, start:-1].flatten()).mean()
        return {
            "actor": -policy_gain - self.config.entropy * entropy,
            "her": -self.config.her_weight * her_dist.log_prob(sampled_actions).mean(),
            "bc": self.config.bc_weight * bc_loss,
            "entropy": entropy.detach(),
            "final_distance": final_distance.mean(),
        }

    @staticmethod
    def _latent_mse(world: World, latents: Tensor, goal: Tensor) -> Tensor:
        """Mean squared error between two frames' latents: (B,)."""
        difference = world.vectors(latents) - world.vectors(goal)
        return difference.float().square().flatten(1).mean(1)
