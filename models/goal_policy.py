"""A controller that is shown a goal and answers with a way there at once, without search.

It learns from imagined trajectories alone, in two ways.  A way that wanders about a recorded one is
imagined, and is an answer to the goal where it ended (hindsight, arXiv:1707.01495): so it learns
what has to be gone around, of which a gradient tells nothing until the block is touched.  And its
own ways are imagined, and the distance that a planner searches over is lowered by its gradient
through the world, for all starts and goals together (SVG, arXiv:1510.09142; Dreamer's actor,
arXiv:1912.01603): so it learns to arrive.

A goal can be reached on either side of a block, so it proposes several ways, of which the best
learns the most from a goal (multiple choice learning, Guzman-Rivera et al. 2012), and says which it
would take: nothing is imagined when it acts.

Letters: B worlds, K proposals, L legs, E = L + 1 ends, T frames, P patches, D latent width,
A action numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from data.actions import ActionSpec
from models.dynamics import State
from models.planner import Plan, along
from models.policy import PolicyConfig, make_glance, mlp
from models.tokenizer import Latents, Tokenizer
from models.world import World


@dataclass(frozen=True)
class GoalPolicyConfig:
    glance: PolicyConfig = field(default_factory=lambda: PolicyConfig(hidden=512))
    """How latents of many patches are looked at, and the width of the layers behind."""
    legs: int = 5
    leg: int = 5
    """Actions of a leg, between whose ends the action moves evenly."""
    proposals: int = 4
    """Ways of which it takes one."""
    reach: float = 0.2
    """Length of a leg, where an action spans 2, that costs `effort`."""
    hindsight: float = 0.2
    """Weight of the answers that imagined ways are to their own ends."""
    wander: float = 0.1
    """Standard deviation by which a leg of such a way differs from the recorded one's."""
    spread: float = 0.1
    """Standard deviation of answers around a proposal."""
    effort: float = 0.01
    """Cost of legs of that length, beside 1 for staying as far from the goal as before: what lies
    far from the recordings is imagined wrongly."""


class GoalPolicy(nn.Module):
    """State and goal to a way: the ends of its legs. An episode's first action begins in the middle
    of the action space, unless it is known where the hand is."""

    def __init__(self, config: GoalPolicyConfig, latents: Latents, actions: ActionSpec) -> None:
        super().__init__()
        if latents.kind != "continuous" or actions.kind != "continuous":
            raise ValueError(
                "a controller for goals learns by gradients through imagination, which codes do "
                "not carry; use a world of continuous latents and actions (--preset goals)"
            )
        self.config, self.latents, self.actions = config, latents, actions
        self.legs, self.leg = config.legs, config.leg
        self.horizon = config.legs * config.leg
        self.glance = make_glance(config.glance, latents)
        numbers = config.legs * actions.size
        self.net = mlp(
            2 * self.glance.width + actions.size,
            config.glance.hidden,
            config.proposals * (numbers + 1),
        )
        # proposals begin apart, or all would learn the same
        self.apart = nn.Parameter(0.5 * torch.randn(config.proposals, numbers))

    def adopt(self, tokenizer: Tokenizer) -> None:
        self.glance.adopt(tokenizer)

    def forward(self, latents: Tensor, goal: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
        """latents, goal (B, P, D), the normalised action before (B, A) -> ways (B, K, E, A) in
        [-1, 1], and log-probabilities of taking each (B, K)."""
        seen = torch.cat([self.glance(latents), self.glance(goal), last], dim=-1)
        out = self.net(seen).float().unflatten(-1, (self.config.proposals, -1))
        steps = (out[..., 1:] + self.apart).unflatten(-1, (self.legs, -1))
        first = last[:, None, None].expand(-1, self.config.proposals, 1, -1)
        reach = 3 * self.config.reach
        ends = first + (reach * torch.tanh(steps)).cumsum(2)
        return torch.cat([first, ends.clamp(-1, 1)], dim=2), out[..., 0].log_softmax(-1)

    def to_goal(
        self, state: State, goal: Tensor, last: Tensor | None, ends: Tensor | None = None
    ) -> Plan:
        """As `Planner.to_goal`; it never needs a way to start from. The cost is minus the
        log-probability of the way that is taken."""
        if last is None:
            last = torch.zeros(len(state), self.actions.size, device=goal.device)
        else:
            last = self.actions.normalize(last.to(goal.device))
        ways, likely = self(state.latents, goal, last)
        best = likely.max(1)
        way = ways[torch.arange(len(ways), device=ways.device), best.indices]
        return Plan(self.actions.denormalize(along(way, self.leg)), way, -best.values)

    def loss(self, world: World, latents: Tensor, actions: Tensor) -> dict[str, Tensor]:
        """Imagine ways from a frame of a clip towards a later one.

        latents (B, T, P, D) and normalised actions (B, T, A).  The start is frame T - 1 - horizon,
        and what is before it its history; the goal is the last frame, or one on the way there.
        """
        start = latents.shape[1] - 1 - self.horizon
        rows = torch.arange(len(latents), device=latents.device)
        ahead = torch.randint(1, 2 * self.horizon, (len(rows),), device=latents.device)
        goal = latents[rows, start + ahead.clamp(max=self.horizon)]
        # at the beginning of an episode there is no history: half of the time it is kept back
        history = 0 if torch.rand(()) < 0.5 else start
        state = world.dynamics.start(
            latents[:, start - history : start + 1], actions[:, start - history : start]
        )
        ways, likely = self(state.latents, goal, actions[:, start - 1])
        arrived = world.dynamics.rollout(
            state.repeat(self.config.proposals), along(ways, self.leg).flatten(0, 1)
        )
        there = arrived.latents.view(*likely.shape, *goal.shape[1:]).float()
        left = (there - goal[:, None]).square().flatten(2).mean(2)
        stayed = (state.latents - goal).float().square().mean().clamp(min=1e-8)
        share = left / stayed
        effort = (ways.diff(dim=2) / self.config.reach).square().flatten(2).mean(2)
        # not squared: what is nearly there counts as much as what is far off
        cost = (share + 1e-4).sqrt() + self.config.effort * effort
        with torch.no_grad():
            nearest = share.min(1).values.mean()
            chosen = share.gather(1, likely.argmax(1, keepdim=True)).mean()
        answer = self._wander(actions[:, start - 1 : start + self.horizon])
        with torch.no_grad():
            ended = world.dynamics.rollout(state, along(answer, self.leg)).latents
        return {
            "best": cost.min(1).values.mean(),
            "expected": (likely.exp() * cost).sum(1).mean(),
            "hindsight": self.config.hindsight
            * self._surprise(answer, *self(state.latents, ended, answer[:, 0])),
            "nearest": nearest,
            "chosen": chosen,
        }

    def _wander(self, actions: Tensor) -> Tensor:
        """A way about the recorded one: actions (B, 1 + horizon, A) -> (B, E, A)."""
        ends = actions[:, :: self.leg]
        steps = self.config.wander * torch.randn_like(ends)
        steps[:, 0] = 0
        return (ends + steps.cumsum(1)).clamp(-1, 1)

    def _surprise(self, answer: Tensor, ways: Tensor, likely: Tensor) -> Tensor:
        """Minus the log-likelihood of answers, (B, E, A), in a mixture of normals at the ways, for
        each of their numbers."""
        apart = ((ways - answer[:, None])[:, :, 1:] / self.config.spread).flatten(2)
        each = likely - 0.5 * apart.square().sum(2)
        return -each.logsumexp(1).mean() / apart.shape[2]
