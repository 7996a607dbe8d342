"""What planning is made of: a plan, what makes one, what proposes one, and what it lowers.

Letters: B worlds, M states, H action blocks, E = H + 1 knots, T actions, P patches, D latent width,
A action numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from models.dynamics.dynamics import State
from models.world import World


@dataclass
class Plan:
    actions: Tensor
    """(B, T, A), in the environment's units."""
    knots: Tensor
    """(B, E, A), in [-1, 1]: a warm start for another search."""
    cost: Tensor
    """(B,)"""
    start_cost: Tensor | None = None
    """(B,), of the states that the plan starts from, where the planner knows one."""


class Objective(Protocol):
    """What a planner lowers: how far states are from a goal, or from a task's."""

    per_block: bool
    """It follows a rollout block by block, rather than looking at its end."""

    def start(self, latents: Tensor) -> Tensor:
        """Latents of M states, (M, N) codes or (M, P, D) -> what is followed of them, (M, ...)."""
        ...

    def follow(self, tracked: Tensor, actions: Tensor, latents: Tensor) -> Tensor:
        """Go on to the latents that normalized actions, (M, T, A), led to."""
        ...

    def cost(self, tracked: Tensor, goal: Tensor) -> Tensor:
        """goal: vectors, (M, P, D), or poses, (M, 3), of a task that has several.  Returns (M,)."""
        ...


class GoalDistance:
    """Mean squared distance of latents, as vectors, from their goals'."""

    per_block = False

    def __init__(self, world: World) -> None:
        self.start = world.vectors

    def follow(self, tracked: Tensor, actions: Tensor, latents: Tensor) -> Tensor:
        return self.start(latents)

    def cost(self, tracked: Tensor, goal: Tensor) -> Tensor:
        return (tracked - goal).square().flatten(1).mean(1)


class GoalPlanner(Protocol):
    """Plans to a goal: a planner, or a goal policy."""

    horizon: int
    action_block: int

    def reset(self) -> None:
        """Begin new episodes: forget earlier plans."""
        ...

    def plan(
        self,
        state: State,
        goal: Tensor,
        last_action: Tensor | None,
        warm_start: Tensor | None = None,
        stalls: Tensor | None = None,
    ) -> Plan:
        """As `Planner.plan`."""
        ...


class PolicyPrior(Protocol):
    """Gives the last action of the next block."""

    action_block: int

    def __call__(self, latents: Tensor, goal: Tensor, last_action: Tensor) -> Tensor:
        """latents, goal (B, P, D), the last action (B, A) -> (B, A); actions in [-1, 1]."""
        ...
