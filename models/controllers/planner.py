"""Search for the actions that lead an imagined world to a goal.

One sampler, four ways of narrowing it: the cross-entropy method (Rubinstein 1999), MPPI (Williams
et al., arXiv:1509.01149), gradient descent through the model, and random shooting.

A candidate is a way: actions at the ends of its legs, between which the action moves evenly, as a
hand does.  With legs of one action every action is free.  Discrete actions cannot be moved evenly.

Letters: B worlds, N candidates, L legs, E = L + 1 ends, T = L * leg actions, A action numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor

from models.config import start_at_one
from models.dynamics.dynamics import State
from models.world import World

Search = Callable[..., tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class PlannerConfig:
    method: Literal["cem", "mppi", "gradient", "shooting"] = "cem"
    samples: int = 300
    """Candidates of an iteration."""
    iterations: int = 30
    revisions: int = 5
    """Iterations of a search that starts from a way: a guide's, or what is left of a plan."""
    best: int = 30
    """Candidates that the next iteration is drawn around (CEM)."""
    legs: int = 5
    leg: int = 5
    """Actions of a leg."""
    reach: float = 0.2
    """Standard deviation of a leg's length at first; an action spans 2."""
    detour: float = 0.2
    """Standard deviation of what is added to a guide's answers on the first legs of its ways."""
    detours: int = 3
    """Legs of a way that are changed so, at most."""
    near: float = 0.05
    """Standard deviation around the best of a guide's ways, at first."""
    least: float = 0.01
    """Standard deviation below which the search is not narrowed."""
    temperature: float = 0.1
    """Of MPPI's weights, in standard deviations of the candidates' costs."""
    learning_rate: float = 0.05
    """Of gradient descent."""
    candidates: int = 8192
    """Candidates that are imagined at once; the plan does not depend on it."""
    seed: int = 0

    def __post_init__(self) -> None:
        counts = ("samples", "iterations", "revisions", "best", "legs", "leg", "detours")
        start_at_one(self, "--planner.", *counts)

    def guided(self, leg: int, steps: int) -> PlannerConfig:
        """The same with a guide's legs of `leg` actions, as many as `steps` actions take."""
        return replace(self, leg=leg, legs=-(-steps // leg))


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


class Guide(Protocol):
    """Says at once where the next leg should end."""

    leg: int

    def __call__(self, latents: Tensor, goal: Tensor, last: Tensor) -> Tensor:
        """latents, goal (B, P, D), the action before (B, A) -> (B, A); actions in [-1, 1]."""
        ...


@dataclass
class Draws:
    """All that is drawn in a search, before it begins: nothing in it asks for chance."""

    steps: list[Tensor]
    """(1, N, L, A) of each iteration, normal."""
    places: list[Tensor]
    """(1, N, 1, A), even over [-1, 1]: where ways begin, of an iteration that draws them anew."""
    detours: Tensor | None = None
    """(N, L, A): what is added to a guide's answers."""


class Planner:
    """Plans in a world, whatever its tokenizer and dynamics.

    `guide` answers at once.  A search for a goal is then one around the best of many ways that it
    would go in imagination, each led astray on its first legs and guided from where it has come to:
    one of them goes around what a single answer, or a search around it, does not (a policy's
    proposals, as in TD-MPC2, arXiv:2310.16828, and in POPLIN, arXiv:1906.08649, which disturb every
    step).  `record` may wrap the search, a function of states and tensors in which nothing waits
    for a GPU, in something that replays it (pipeline/inference/recorded.py).
    """

    def __init__(
        self,
        config: PlannerConfig,
        world: World,
        record: Callable[[Search], Search] | None = None,
        guide: Guide | None = None,
    ) -> None:
        if guide is not None and guide.leg != config.leg:
            raise ValueError(
                f"a plan of legs of {config.leg} actions cannot begin from ways of legs of "
                f"{guide.leg}; give --planner.leg {guide.leg}"
            )
        if world.actions.kind != "continuous":
            raise ValueError("planning moves actions evenly, which codes of actions cannot be")
        self.config, self.world, self.guide = config, world, guide
        self.legs, self.leg = config.legs, config.leg
        self._searched: Search = self._search if record is None else record(self._search)

    def to_goal(self, state: State, goal: Tensor, last: Tensor | None, ends: Tensor | None) -> Plan:
        """Plan towards latents, (B, N) codes or (B, P, D).

        last: (B, A), the action before, in the environment's units, where the way begins.
        ends: (B, E, A), a way to start the search from, if a guide has none that is better; its
        legs are as many as are planned.
        """
        config, spec = self.config, self.world.actions
        first = None if last is None else spec.normalize(last.to(self.world.device))
        # one draw for all worlds: what is planned in one does not depend on its neighbours
        guided = self.guide is not None
        legs = config.legs if ends is None else ends.shape[1] - 1
        draws = self._draw(legs, guided or ends is not None, guided)
        share = max(1, config.candidates // config.samples)
        given = (self.world.vectors(goal), first, ends)
        found = []
        for part in torch.arange(len(state), device=self.world.device).split(share):
            own = [None if t is None else t[part] for t in given]
            found.append(self._searched(state.select(part), *own, draws))
        best, least = (torch.cat(parts) for parts in zip(*found, strict=True))
        return Plan(spec.denormalize(along(best, config.leg)), best, least)

    def _distance(self, end: State, target: Tensor) -> Tensor:
        """Of ends, M rows, each from its target, (M, ...): (M,)."""
        return (self.world.vectors(end.latents) - target).square().flatten(1).mean(1)

    def _draw(self, legs: int, revises: bool, guided: bool) -> Draws:
        config, size, device = self.config, self.world.actions.size, self.world.device
        random = torch.Generator(device=device).manual_seed(config.seed)
        steps, places = [], []

        def normal(rows: int) -> Tensor:
            shape = (1, config.samples, rows, size)
            return torch.randn(shape, generator=random, device=device)

        for iteration in range(config.revisions if revises else config.iterations):
            if iteration == 0 or config.method == "shooting":
                steps.append(normal(legs))
                place = torch.rand((1, config.samples, 1, size), generator=random, device=device)
                places.append(place * 2 - 1)
            elif config.method != "gradient":
                steps.append(normal(legs + 1))
        if not guided:
            return Draws(steps, places)
        most = min(config.detours, legs)
        until = torch.randint(1, most + 1, (config.samples, 1, 1), generator=random, device=device)
        until[0] = 0  # the guide's own way
        leg = torch.arange(legs, device=device)[:, None]
        detours = torch.where(leg < until, config.detour * normal(legs)[0], 0.0)
        return Draws(steps, places, detours)

    def _search(
        self,
        state: State,
        target: Tensor,
        first: Tensor | None,
        ends: Tensor | None,
        draws: Draws,
    ) -> tuple[Tensor, Tensor]:
        """Give the best way, (B, E, A), and what it costs, (B,); first: (B, A) in [-1, 1]."""
        config = self.config
        many = state.repeat(config.samples)
        targets = target.repeat_interleave(config.samples, dim=0)

        def judge(ways: Tensor) -> Tensor:
            there = self.world.imagine(many, along(ways.flatten(0, 1), config.leg))
            return self._distance(there, targets).view(len(state), config.samples)

        reach = config.reach
        if draws.detours is not None:
            with torch.no_grad():
                ways, there = self._guided_ways(many, targets, first, draws.detours)
                costs = self._distance(there, targets).view(len(state), -1)
                guided, costs = _cheapest(ways, costs)
                if ends is not None:
                    there = self.world.imagine(state, along(ends, config.leg))
                    known = self._distance(there, target)
                    guided = torch.where((known < costs)[:, None, None], ends, guided)
            ends, reach = guided, config.near
        ways = self._first_ways(len(state), first, ends, draws.steps[0], draws.places[0], reach)
        best, least = ways[:, 0], torch.full((len(state),), torch.inf, device=ways.device)
        iterations = config.iterations if ends is None else config.revisions
        for iteration in range(iterations):
            following = None
            if config.method == "gradient":
                following, costs = self._downhill(ways, judge, first)
            else:
                with torch.no_grad():
                    costs = judge(ways)
            taken, found = _cheapest(ways, costs)
            best = torch.where((found < least)[:, None, None], taken, best)
            least = torch.minimum(found, least)
            if following is not None:
                ways = following
            elif iteration + 1 < iterations:
                steps = draws.steps[iteration + 1]
                if config.method == "shooting":
                    places = draws.places[iteration + 1]
                    ways = self._first_ways(len(ways), first, ends, steps, places, reach)
                else:
                    ways = self._next_ways(ways, costs, best, first, steps)
        return best, least

    def _guided_ways(
        self, many: State, targets: Tensor, first: Tensor | None, detours: Tensor
    ) -> tuple[Tensor, State]:
        """Let the guide go, N rows for each of B worlds: its ways, (B, N, E, A), and their ends."""
        assert self.guide is not None
        samples, size = len(detours), detours.shape[-1]
        count = len(many) // samples
        start = torch.zeros(count, size, device=detours.device) if first is None else first
        last = start.repeat_interleave(samples, dim=0)
        way = [last]
        for astray in detours.repeat(count, 1, 1).unbind(1):
            end = (self.guide(many.latents, targets, last) + astray).clamp(-1, 1)
            many = self.world.imagine(many, along(torch.stack([last, end], 1), self.leg))
            way.append(end)
            last = end
        return torch.stack(way, 1).unflatten(0, (count, samples)), many

    def _first_ways(
        self,
        count: int,
        first: Tensor | None,
        ends: Tensor | None,
        steps: Tensor,
        places: Tensor,
        reach: float,
    ) -> Tensor:
        """Walks from where the hand is, or from anywhere: (B, N, E, A)."""
        steps = reach * steps
        start = places.expand(count, -1, -1, -1)
        if first is not None:
            start = first[:, None, None].expand_as(start)
        if ends is None:
            return self._inside(torch.cat([start, start + steps.cumsum(2)], dim=2), first)
        near = torch.cat([start, ends[:, None, 1:] + steps], dim=2)
        return self._inside(torch.cat([ends[:, None], near[:, 1:]], dim=1), first)

    def _next_ways(
        self, ways: Tensor, costs: Tensor, best: Tensor, first: Tensor | None, noise: Tensor
    ) -> Tensor:
        """Draw around the best ways (CEM), or around all by how good they are (MPPI)."""
        config = self.config
        if config.method == "cem":
            order = costs.argsort(1)[:, : config.best]
            weight = torch.zeros_like(costs).scatter(1, order, 1 / order.shape[1])
        else:
            spread = costs.std(1, keepdim=True).clamp(min=1e-8)
            weight = torch.softmax(-costs / (config.temperature * spread), dim=1)
        weight = weight[..., None, None]
        mean = (weight * ways).sum(1, keepdim=True)
        deviation = (weight * (ways - mean).square()).sum(1, keepdim=True).sqrt()
        drawn = mean + deviation.clamp(min=config.least) * noise
        return self._inside(torch.cat([best[:, None], drawn[:, 1:]], dim=1), first)

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


def _cheapest(ways: Tensor, costs: Tensor) -> tuple[Tensor, Tensor]:
    """(B, N, E, A) and (B, N) -> the best way of each world, (B, E, A), and its cost, (B,)."""
    least, chosen = costs.min(1)
    return ways[torch.arange(len(ways), device=ways.device), chosen], least
