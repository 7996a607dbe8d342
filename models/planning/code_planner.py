"""Beam search over codes that are held for a block: for few discrete actions, such as latent ones.

With a beam of C^(H - 1) sequences it is exhaustive. It has no random numbers.

Letters: B worlds, W sequences of a beam, C codes, H action blocks, T = H * action_block actions,
M states, G goals, P patches, D latent width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from data.ranges import CheckedConfig, Range
from models.dynamics.dynamics import State
from models.layers.sampling import Sampling
from models.planning.candidates import worst_if_not_finite
from models.planning.image_distance import ImageDistance
from models.planning.plan import GoalDistance, Objective, Plan
from models.world import World

MAX_CODES = 64  # that are tried one by one
LEAST_RISK = Sampling(steps=1)
"""A search decodes the likeliest codes, whatever a picture is drawn with."""


@dataclass(frozen=True)
class CodePlannerConfig(CheckedConfig):
    beam_width: Annotated[int, Range(1, 10**6)] = 16
    """Sequences that go on after each block."""
    horizon: Annotated[int, Range(1, 100)] = 5
    """Action blocks of a plan."""
    action_block: Annotated[int, Range(1, 10**4)] = 5
    """Steps that a code is held."""
    max_parallel: Annotated[int, Range(1, 2**24)] = 4096
    """Largest batch of the model; the plan does not depend on it."""


class CodePlanner:
    """Plans codes towards a goal, by the images that they lead to, or by latents that are no
    codes."""

    def __init__(
        self, config: CodePlannerConfig, world: World, objective: Objective | None = None
    ) -> None:
        """objective: of a task; by default a distance in which near is near: of blurred images
        where latents are codes, else of latents."""
        if not can_search_codes(world):
            raise ValueError(
                f"a beam search tries each of at most {MAX_CODES} codes, and this world's actions "
                f"are {world.actions.kind}, {world.actions.size} in number"
            )
        self.config, self.world = config, world
        if objective is None:
            drawn = world.state_spec.kind == "discrete" and world.has_decoder
            objective = ImageDistance(world) if drawn else GoalDistance(world)
        self.objective: Objective = objective
        self.horizon, self.action_block = config.horizon, config.action_block

    def reset(self) -> None:
        """Nothing is remembered."""

    @torch.no_grad()
    def plan(
        self,
        state: State,
        goal: Tensor,
        last_action: Tensor | None = None,
        warm_start: Tensor | None = None,
        stalls: Tensor | None = None,
    ) -> Plan:
        """Plan towards a goal's latents, (B, N) or (B, P, D), or the nearest of a set, (B, G, N) or
        (B, G, P, D).

        warm_start: (B, H + 1, 1), the rest of a plan, whose length alone counts.  The last action
        and stalls are not looked at.
        """
        horizon = self.config.horizon if warm_start is None else warm_start.shape[1] - 1
        single = 3 if self.world.state_spec.kind == "continuous" else 2
        goals = goal[:, None] if goal.ndim == single else goal
        tracked = torch.stack([self.objective.start(each) for each in goals.unbind(1)], 1)
        at_once = max(1, self.config.max_parallel // (self.config.beam_width * self._count))
        world, parts = self.world.with_sampling(LEAST_RISK), []
        for rows in torch.arange(len(state), device=self.world.device).split(at_once):
            parts.append(self._search(world, state.select(rows), tracked[rows], horizon))
        codes, cost = (torch.cat(found) for found in zip(*parts, strict=True))
        start_cost = self._cost(self.objective.start(state.latents), tracked)
        knots = torch.cat([codes[:, :1], codes], 1)[..., None]
        return Plan(codes.repeat_interleave(self.action_block, 1), knots, cost, start_cost)

    @property
    def _count(self) -> int:
        return self.world.actions.size

    def _search(
        self, world: World, state: State, goals: Tensor, horizon: int
    ) -> tuple[Tensor, Tensor]:
        """Find the best codes, (B, H), and their costs, (B,); goals: tracked, (B, G, ...)."""
        worlds, count = len(state), self._count
        beams, tracked = state, self.objective.start(state.latents)
        codes = torch.zeros(worlds, 1, 0, dtype=torch.int64, device=self.world.device)
        costs = torch.zeros(worlds, 1, device=self.world.device)
        for _ in range(horizon):
            width = codes.shape[1]
            tried = torch.arange(count, device=codes.device).repeat(worlds * width)
            actions = tried[:, None].expand(-1, self.action_block)
            after = world.imagine(beams.repeat(count), actions)
            followed = tracked.repeat_interleave(count, 0)
            followed = self.objective.follow(followed, actions, after.latents)
            found = self._cost(followed, goals.repeat_interleave(width * count, 0))
            found = worst_if_not_finite(found.view(worlds, width * count))
            # stable: of equal ones the first, on every machine
            order = found.argsort(dim=1, stable=True)[:, : self.config.beam_width]
            costs = found.gather(1, order)
            before = codes.gather(1, (order // count)[..., None].expand(-1, -1, codes.shape[2]))
            codes = torch.cat([before, (order % count)[..., None]], 2)
            first = torch.arange(worlds, device=order.device)[:, None] * (width * count)
            kept = (first + order).flatten()
            beams, tracked = after.select(kept), followed[kept]
        return codes[:, 0], costs[:, 0]

    def _cost(self, tracked: Tensor, goals: Tensor) -> Tensor:
        """tracked (M, ...), goals (M, G, ...) -> (M,), to the nearest."""
        each = [self.objective.cost(tracked, goal) for goal in goals.unbind(1)]
        return torch.stack(each, 1).amin(1)


def can_search_codes(world: World) -> bool:
    """Return whether a world's actions are few codes, which can be tried one by one."""
    return world.actions.kind == "discrete" and world.actions.size <= MAX_CODES
