"""Search for the actions that lead an imagined world to a goal.

One sampler, four ways of narrowing it: the cross-entropy method (Rubinstein 1999), MPPI (Williams
et al., arXiv:1509.01149), gradient descent through the model, and random shooting.

A candidate is a way: actions at the ends of its legs, between which the action moves evenly, as a
hand does.  With legs of one action every action is free.  Discrete actions cannot be moved evenly.

Letters: B worlds, N candidates, L legs, E = L + 1 ends, T = L * leg actions, A action numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from models.dynamics import State
from models.world import World

Cost = Callable[[State], Tensor]


@dataclass(frozen=True)
class PlannerConfig:
    method: Literal["cem", "mppi", "gradient", "shooting"] = "cem"
    samples: int = 300
    """Candidates of an iteration."""
    iterations: int = 30
    revisions: int = 10
    """Iterations of a search that starts from what is left of a way."""
    best: int = 30
    """Candidates that the next iteration is drawn around (CEM)."""
    legs: int = 5
    leg: int = 5
    """Actions of a leg."""
    reach: float = 0.2
    """Standard deviation of a leg's length at first; an action spans 2."""
    least: float = 0.01
    """Standard deviation below which the search is not narrowed."""
    temperature: float = 0.1
    """Of MPPI's weights, in standard deviations of the candidates' costs."""
    learning_rate: float = 0.05
    """Of gradient descent."""
    candidates: int = 8192
    """Candidates that are imagined at once; the plan does not depend on it."""
    seed: int = 0


@dataclass
class Plan:
    actions: Tensor
    """(B, T, A), in the environment's units."""
    ends: Tensor
    """(B, E, A), in [-1, 1]: what another search can start from."""
    cost: Tensor
    """(B,)"""


class ToGoal(Protocol):
    """Finds ways to goals: a planner, or a controller that answers at once."""

    legs: int
    leg: int

    def to_goal(self, state: State, goal: Tensor, last: Tensor | None, ends: Tensor | None) -> Plan:
        """As `Planner.to_goal`."""
        ...


class Planner:
    """Plans in a world, whatever its tokenizer and dynamics."""

    def __init__(self, config: PlannerConfig, world: World) -> None:
        if world.actions.kind != "continuous":
            raise ValueError("planning moves actions evenly, which codes of actions cannot be")
        self.config, self.world = config, world
        self.legs, self.leg = config.legs, config.leg

    def to_goal(self, state: State, goal: Tensor, last: Tensor | None, ends: Tensor | None) -> Plan:
        """Plan towards latents, (B, N) codes or (B, P, D).

        last: (B, A), the action before, in the environment's units, where the way begins.
        ends: (B, E, A), a way to start the search from; its legs are as many as are planned.
        """
        vectors = self.world.vectors(goal)

        def distance(rows: Tensor) -> Cost:
            to = vectors[rows]
            return lambda end: (self.world.vectors(end.latents) - to).square().flatten(1).mean(1)

        return self.search(state, distance, last, ends)

    def to_reward(self, state: State, last: Tensor | None, ends: Tensor | None) -> Plan:
        """Plan for the highest reward on arriving; the world needs a reward head."""
        return self.search(state, lambda rows: lambda end: -end.reward, last, ends)

    def search(
        self,
        state: State,
        cost: Callable[[Tensor], Cost],
        last: Tensor | None = None,
        ends: Tensor | None = None,
    ) -> Plan:
        """Plan for the least `cost(rows)(end)`, (M,): rows, (M,), say whose ends they are."""
        share = max(1, self.config.candidates // self.config.samples)
        rows = torch.arange(len(state), device=self.world.device)
        parts = [
            self._search(
                state.select(part),
                cost,
                part,
                None if last is None else last[part],
                None if ends is None else ends[part],
            )
            for part in rows.split(share)
        ]
        return Plan(
            *(torch.cat([getattr(p, name) for p in parts]) for name in ("actions", "ends", "cost"))
        )

    def _search(
        self,
        state: State,
        cost: Callable[[Tensor], Cost],
        rows: Tensor,
        last: Tensor | None,
        ends: Tensor | None,
    ) -> Plan:
        config, spec = self.config, self.world.actions
        # one draw for all worlds: what is planned in one does not depend on its neighbours
        random = torch.Generator(device=self.world.device).manual_seed(config.seed)
        first = None if last is None else spec.normalize(last.to(self.world.device))
        many = state.repeat(config.samples)
        distance = cost(rows.repeat_interleave(config.samples))

        def judge(ways: Tensor) -> Tensor:
            actions = spec.denormalize(along(ways.flatten(0, 1), config.leg))
            return distance(self.world.rollout(many, actions)).view(len(state), config.samples)

        ways = self._first_ways(len(state), first, ends, random)
        best, least = ways[:, 0], torch.full((len(state),), torch.inf, device=ways.device)
        iterations = config.iterations if ends is None else config.revisions
        for iteration in range(iterations):
            following = None
            if config.method == "gradient":
                following, costs = self._downhill(ways, judge, first)
            else:
                with torch.no_grad():
                    costs = judge(ways)
            chosen = costs.argmin(1)
            found = costs.gather(1, chosen[:, None])[:, 0]
            taken = ways[torch.arange(len(ways), device=ways.device), chosen]
            best = torch.where((found < least)[:, None, None], taken, best)
            least = torch.minimum(found, least)
            if following is not None:
                ways = following
            elif iteration + 1 < iterations:
                ways = self._next_ways(ways, costs, best, first, ends, random)
        return Plan(spec.denormalize(along(best, config.leg)), best, least)

    def _first_ways(
        self, count: int, first: Tensor | None, ends: Tensor | None, random: torch.Generator
    ) -> Tensor:
        """Draw walks from where the hand is, or from anywhere: (B, N, E, A)."""
        config, size = self.config, self.world.actions.size
        legs = config.legs if ends is None else ends.shape[1] - 1
        shape = (1, config.samples, legs, size)
        device = self.world.device
        steps = config.reach * torch.randn(shape, generator=random, device=device)
        anywhere = torch.rand(shape[:2] + (1, size), generator=random, device=device) * 2 - 1
        start = anywhere.expand(count, -1, -1, -1)
        if first is not None:
            start = first[:, None, None].expand_as(start)
        ways = torch.cat([start, start + steps.cumsum(2)], dim=2)
        if ends is not None:
            ways = torch.cat([start, ends[:, None, 1:] + steps], dim=2)
            ways[:, 0] = ends
        return self._inside(ways, first)

    def _next_ways(
        self,
        ways: Tensor,
        costs: Tensor,
        best: Tensor,
        first: Tensor | None,
        ends: Tensor | None,
        random: torch.Generator,
    ) -> Tensor:
        config = self.config
        if config.method == "shooting":
            return self._first_ways(len(ways), first, ends, random)
        if config.method == "cem":
            order = costs.argsort(1)[:, : config.best]
            weight = torch.zeros_like(costs).scatter(1, order, 1 / order.shape[1])
        else:
            spread = costs.std(1, keepdim=True).clamp(min=1e-8)
            weight = torch.softmax(-costs / (config.temperature * spread), dim=1)
        weight = weight[..., None, None]
        mean = (weight * ways).sum(1, keepdim=True)
        deviation = (weight * (ways - mean).square()).sum(1, keepdim=True).sqrt()
        shape = (1, *ways.shape[1:])
        noise = torch.randn(shape, generator=random, device=ways.device)
        drawn = mean + deviation.clamp(min=config.least) * noise
        drawn[:, 0] = best
        return self._inside(drawn, first)

    def _downhill(
        self, ways: Tensor, judge: Callable[[Tensor], Tensor], first: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Move every candidate along its own gradient; the costs are those before the move."""
        with torch.enable_grad():
            moved = ways.detach().requires_grad_()
            costs = judge(moved)
            (slope,) = torch.autograd.grad(costs.sum(), moved)
        size = slope.flatten(2).norm(dim=2)[..., None, None].clamp(min=1e-8)
        # a slope of unit length: far from the goal the distance is flat, near it steep
        step = self.config.learning_rate * slope / size * slope[0, 0].numel() ** 0.5
        return self._inside(ways - step, first), costs.detach()

    def _inside(self, ways: Tensor, first: Tensor | None) -> Tensor:
        ways = ways.clamp(-1, 1)
        if first is not None:
            ways = torch.cat([first[:, None, None].expand_as(ways[:, :, :1]), ways[:, :, 1:]], 2)
        return ways


def along(ends: Tensor, leg: int) -> Tensor:
    """Go evenly from end to end: (..., E, A) -> the actions, (..., (E - 1) * leg, A)."""
    share = torch.arange(1, leg + 1, device=ends.device)[:, None] / leg
    before, after = ends[..., :-1, None, :], ends[..., 1:, None, :]
    return (before + (after - before) * share).flatten(-3, -2)
