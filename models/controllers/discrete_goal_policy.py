"""A controller of codes that is shown a goal: what to press next, to come to see that picture.

It learns from imagined trajectories, in two ways, and from recorded ones beside.  Several ways from
each start are drawn and imagined; those that end nearer to the goal's latents than the others from
the same start are made likelier (REINFORCE with the others as the baseline, Kool et al. 2019); and
each imagined way is an answer to the goal where it ended (hindsight, arXiv:1707.01495).  Codes let
no gradient through, so this takes the place that models/controllers/goal_policy.py has for continuous actions.

Letters: B worlds, K ways, H steps, T frames, N codes a frame, P patches, D latent width.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from data.actions import ActionSpec
from models.controllers.planner import Plan
from models.controllers.policy import PolicyConfig, make_encoder, mlp
from models.dynamics.dynamics import State
from models.layers.multi_categorical import MultiCategorical
from models.tokenizers.tokenizer import LatentSpec, Tokenizer
from models.world import World


@dataclass(frozen=True)
class DiscreteGoalPolicyConfig:
    encoder: PolicyConfig = field(default_factory=PolicyConfig)
    """How latents are looked at, and the width of the layers behind."""
    goal_offset: int = 8
    """Steps to a goal in training."""
    num_samples: int = 4
    """Ways that are imagined from each start."""
    her_weight: float = 0.5
    """Weight of the answers that imagined ways are to their own ends."""
    bc_weight: float = 1.0
    """Weight of cloning what was recorded on the way to the goal."""
    entropy: float = 3e-3


class DiscreteGoalPolicy(nn.Module):
    """State and goal to a distribution over codes."""

    def __init__(
        self, config: DiscreteGoalPolicyConfig, latents: LatentSpec, actions: ActionSpec
    ) -> None:
        super().__init__()
        if not actions.factors:
            raise ValueError(
                "this controller for goals chooses keys and turns, but the world's actions are not "
                "made of choices; --preset goals has one for continuous actions"
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

    def load_codebook(self, tokenizer: Tokenizer) -> None:
        self.encoder.load_codebook(tokenizer)

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
    ) -> Plan:
        """Give a plan of one step: the likeliest code. Its cost is minus its log-probability."""
        dist = self.distribution(state.latents, goal)
        code = dist.mode
        return Plan(code[:, None], code[:, None, None], -dist.log_prob(code))

    def loss(self, world: World, latents: Tensor, actions: Tensor) -> dict[str, Tensor]:
        """latents (B, T, N), codes of actions (B, T).

        The start is frame T - 1 - H, and what is before it its history; the goal is the last frame.
        """
        start = latents.shape[1] - 1 - self.max_goal_offset
        goal = latents[:, -1]
        state = world.dynamics.start(latents[:, : start + 1], actions[:, :start])
        rollouts = state.repeat(self.config.num_samples)
        goals = goal.repeat_interleave(self.config.num_samples, 0)
        rollout_latents, rollout_actions = [], []
        with torch.no_grad():
            for _ in range(self.max_goal_offset):
                action = self.distribution(rollouts.latents, goals).sample()
                rollout_latents.append(rollouts.latents)
                rollout_actions.append(action)
                rollouts = world.dynamics.step(rollouts, action)
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
            "hindsight": -self.config.her_weight * her_dist.log_prob(sampled_actions).mean(),
            "recorded": self.config.bc_weight * bc_loss,
            "entropy": entropy.detach(),
            "left": final_distance.mean(),
        }

    @staticmethod
    def _latent_mse(world: World, latents: Tensor, goal: Tensor) -> Tensor:
        """Mean squared distance of two frames' latents: (B,)."""
        difference = world.vectors(latents) - world.vectors(goal)
        return difference.float().square().flatten(1).mean(1)
