"""A controller that is shown a goal and says at once where to move next, without search.

It is asked again at the end of every leg of a few actions, and learns on imagined trajectories: it
is let go from a recorded state towards what was recorded later, answers at each leg to where it has
come to in imagination, and the distance that a planner searches over is lowered by its gradient
through the whole of it (SVG, arXiv:1510.09142; Dreamer's actor, arXiv:1912.01603).  Such a gradient
tells nothing of what has to be gone around until the block is touched; that, the recording shows,
whose next leg is an answer to what came of it (hindsight, arXiv:1707.01495).

Letters: B worlds, L legs, T frames, P patches, D latent width, A action numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from data.actions import ActionSpec
from models.controllers.planner import Plan, along
from models.controllers.policy import PolicyConfig, make_glance, mlp
from models.dynamics.dynamics import State
from models.layers.embeddings import fourier
from models.tokenizers.tokenizer import Latents, Tokenizer
from models.world import World


@dataclass(frozen=True)
class GoalPolicyConfig:
    glance: PolicyConfig = field(default_factory=lambda: PolicyConfig(hidden=512))
    """How latents of many patches are looked at, and the width of the layers behind."""
    leg: int = 5
    """Actions of a leg, which the action moves through evenly."""
    legs: int = 6
    """Legs that are imagined in training."""
    ahead: int = 40
    """Actions from a start to the farthest goal in training."""
    reach: float = 0.2
    """Length of a leg that costs `effort`, where an action spans 2; none is over three times it."""
    early: float = 0.1
    """Weight of the distance before the recording was at the goal, beside 1 from then on."""
    recorded: float = 0.02
    """Weight of answering as recorded, in squares of `spread`."""
    spread: float = 0.1
    effort: float = 0.0125
    """Cost of legs of length `reach`, beside 1 for staying as far from the goal as before: what
    lies far from the recordings is imagined wrongly."""


class GoalPolicy(nn.Module):
    """State and goal to the end of the next leg. An episode's first action begins in the middle of
    the action space, unless it is known where the hand is.

    Where latents are places and an action points at one, the network is also shown how far each
    place is from the hand, as sines and cosines: whether the block is touched, and on which side,
    is a small difference of large numbers, too.
    """

    WAVES = (2.0, 1.0, 0.5)
    """Wavelengths, where the picture spans 2."""
    waves: Tensor

    def __init__(self, config: GoalPolicyConfig, latents: Latents, actions: ActionSpec) -> None:
        super().__init__()
        if latents.kind != "continuous" or actions.kind != "continuous":
            raise ValueError(
                "a controller for goals learns by gradients through imagination, which codes do "
                "not carry; use a world of continuous latents and actions (--preset goals)"
            )
        if config.ahead < config.leg:
            raise ValueError(
                f"goals {config.ahead} actions ahead are nearer than a leg of {config.leg}; give "
                f"--goals.ahead at least --goals.leg"
            )
        self.config, self.latents, self.actions = config, latents, actions
        self.legs, self.leg = 1, config.leg
        self.horizon = config.ahead
        self.glance = make_glance(config.glance, latents)
        given = 3 * self.glance.width + actions.size
        self.pointing = latents.places and actions.pointer
        if self.pointing:
            given += 2 * self.glance.width * 2 * len(self.WAVES)
        waves = torch.tensor(self.WAVES)
        self.register_buffer("waves", waves, persistent=False)
        self.net = mlp(given, config.glance.hidden, actions.size, layers=3)

    def adopt(self, tokenizer: Tokenizer) -> None:
        self.glance.adopt(tokenizer)

    def forward(self, latents: Tensor, goal: Tensor, last: Tensor) -> Tensor:
        """latents, goal (B, P, D), the normalised action before (B, A) -> the end of the next leg,
        (B, A) in [-1, 1]."""
        seen, wanted = self.glance(latents), self.glance(goal)
        # the last of the way is a small difference of large numbers
        given = [seen, wanted, 3 * (wanted - seen), last.to(seen.dtype)]
        if self.pointing:
            given += [self._from_hand(seen, last), self._from_hand(wanted, last)]
        step = 3 * self.config.reach * torch.tanh(self.net(torch.cat(given, dim=-1)).float())
        return (last + step).clamp(-1, 1)

    def _from_hand(self, places: Tensor, last: Tensor) -> Tensor:
        """(B, D), (B, A) -> (B, D * 2 * F)."""
        apart = places.float().unflatten(-1, (-1, last.shape[-1])) - last.float()[:, None]
        return fourier(apart.flatten(1), self.waves).to(places.dtype)

    def to_goal(
        self, state: State, goal: Tensor, last: Tensor | None, ends: Tensor | None = None
    ) -> Plan:
        """As `Planner.to_goal`: a way of one leg, which needs none to start from. It is not judged:
        its cost is 0."""
        if last is None:
            last = torch.zeros(len(state), self.actions.size, device=goal.device)
        else:
            last = self.actions.normalize(last.to(goal.device))
        way = torch.stack([last, self(state.latents, goal, last)], dim=1)
        cost = torch.zeros(len(way), device=way.device)
        return Plan(self.actions.denormalize(along(way, self.leg)), way, cost)

    def loss(self, world: World, latents: Tensor, actions: Tensor) -> dict[str, Tensor]:
        """Imagine the way from a frame of a clip towards a later one.

        latents (B, T, P, D) and normalised actions (B, T, A), with T over `horizon` + 1: what is
        before the start is its history.
        """
        config = self.config
        count, device = len(latents), latents.device
        past = latents.shape[1] - 1 - self.horizon
        ahead = torch.randint(self.leg, self.horizon + 1, (count,), device=device)
        room = self.horizon - ahead + 1
        start = past + (torch.rand(count, device=device) * room).long()
        rows = torch.arange(count, device=device)
        before = rows[:, None], start[:, None] + torch.arange(-past, 1, device=device)
        state = world.dynamics.start(latents[before], actions[before][:, :-1])
        goal, last = latents[rows, start + ahead], actions[rows, start - 1]
        stayed = (state.latents - goal).float().square().mean().clamp(min=1e-8)

        left, effort, answers = [], [], []
        for _ in range(config.legs):
            end = self(state.latents, goal, last)
            state = world.dynamics.rollout(state, along(torch.stack([last, end], 1), self.leg))
            left.append((state.latents - goal).float().square().flatten(1).mean(1) / stayed)
            effort.append(((end - last) / config.reach).square().mean(1))
            answers.append(end)
            last = end
        # the root of the distance: the last of the way, which decides, counts as much as the first
        squared = torch.stack(left, 1)
        distance = (squared + 1e-5) ** 0.25
        arrived = self.leg * torch.arange(1, config.legs + 1, device=device)
        weight = torch.where(arrived >= ahead[:, None], 1.0, config.early)
        weight = weight / weight.sum(1, keepdim=True)
        shown = actions[rows, start + self.leg - 1]
        return {
            "distance": (weight * distance).sum(1).mean(),
            "effort": config.effort * torch.stack(effort).mean(),
            "recorded": config.recorded * ((answers[0] - shown) / config.spread).square().mean(),
            "left": (squared[:, -1].detach() + 1e-4).sqrt().mean(),
        }
