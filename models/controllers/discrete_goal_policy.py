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
from models.controllers.policy import PolicyConfig, make_glance, mlp
from models.dynamics.dynamics import State
from models.layers.multi_categorical import Choices
from models.tokenizers.tokenizer import Latents, Tokenizer
from models.world import World


@dataclass(frozen=True)
class GoalCodesConfig:
    glance: PolicyConfig = field(default_factory=PolicyConfig)
    """How latents are looked at, and the width of the layers behind."""
    steps: int = 8
    """Steps to a goal in training."""
    proposals: int = 4
    """Ways that are imagined from each start."""
    hindsight: float = 0.5
    """Weight of the answers that imagined ways are to their own ends."""
    recorded: float = 1.0
    """Weight of cloning what was recorded on the way to the goal."""
    entropy: float = 3e-3


class GoalCodes(nn.Module):
    """State and goal to a distribution over codes."""

    def __init__(self, config: GoalCodesConfig, latents: Latents, actions: ActionSpec) -> None:
        super().__init__()
        if not actions.factors:
            raise ValueError(
                "this controller for goals chooses keys and turns, but the world's actions are not "
                "made of choices; --preset goals has one for continuous actions"
            )
        self.config, self.actions = config, actions
        self.horizon = config.steps
        self.legs = self.leg = 1
        self.glance = make_glance(config.glance, latents)
        width = 2 * self.glance.width
        self.head = nn.Sequential(
            nn.Dropout(config.glance.dropout),
            mlp(width, config.glance.hidden, sum(actions.factor_sizes)),
        )

    def adopt(self, tokenizer: Tokenizer) -> None:
        self.glance.adopt(tokenizer)

    def distribution(self, latents: Tensor, goal: Tensor) -> Choices:
        """latents, goal (B, N) -> a distribution over codes, (B,)."""
        seen = torch.cat([self.glance(latents), self.glance(goal)], dim=-1)
        return Choices(self.head(seen).float(), self.actions)

    def to_goal(
        self, state: State, goal: Tensor, last: Tensor | None, ends: Tensor | None = None
    ) -> Plan:
        """Give a plan of one step: the likeliest code. Its cost is minus its log-probability."""
        chosen = self.distribution(state.latents, goal)
        code = chosen.mode
        return Plan(code[:, None], code[:, None, None], -chosen.log_prob(code))

    def loss(self, world: World, latents: Tensor, actions: Tensor) -> dict[str, Tensor]:
        """latents (B, T, N), codes of actions (B, T).

        The start is frame T - 1 - H, and what is before it its history; the goal is the last frame.
        """
        start = latents.shape[1] - 1 - self.horizon
        goal = latents[:, -1]
        state = world.dynamics.start(latents[:, : start + 1], actions[:, :start])
        ways = state.repeat(self.config.proposals)
        wanted = goal.repeat_interleave(self.config.proposals, 0)
        seen, taken = [], []
        with torch.no_grad():
            for _ in range(self.horizon):
                action = self.distribution(ways.latents, wanted).sample()
                seen.append(ways.latents)
                taken.append(action)
                ways = world.dynamics.step(ways, action)
            stayed = self._apart(world, state.latents, goal).mean().clamp(min=1e-6)
            left = self._apart(world, ways.latents, wanted) / stayed
            left = left.view(-1, self.config.proposals)  # (B, K)
            others = (left.sum(1, keepdim=True) - left) / max(1, self.config.proposals - 1)
            advantage = (others - left).flatten()
            advantage = advantage / advantage.std().clamp(min=1e-3)
        rows, done = torch.cat(seen), torch.cat(taken)
        chosen = self.distribution(rows, torch.cat([wanted] * self.horizon))
        entropy = chosen.entropy().mean()
        worth = (chosen.log_prob(done) * advantage.repeat(self.horizon)).mean()
        ended = self.distribution(rows, torch.cat([ways.latents] * self.horizon))
        shown = latents[:, start:-1].flatten(0, 1)
        towards = self.distribution(shown, goal.repeat_interleave(self.horizon, 0))
        recorded = -towards.log_prob(actions[:, start:-1].flatten()).mean()
        return {
            "actor": -worth - self.config.entropy * entropy,
            "hindsight": -self.config.hindsight * ended.log_prob(done).mean(),
            "recorded": self.config.recorded * recorded,
            "entropy": entropy.detach(),
            "left": left.mean(),
        }

    @staticmethod
    def _apart(world: World, latents: Tensor, goal: Tensor) -> Tensor:
        """Mean squared distance of two frames' latents: (B,)."""
        apart = world.vectors(latents) - world.vectors(goal)
        return apart.float().square().flatten(1).mean(1)
