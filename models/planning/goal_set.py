"""Sets of goals, any of which will do: how far states are from one, and how to act towards one.

A few goals are a few places: the distance is that from the nearest.  Many show what differs among
them, such as where an agent stands: the distance is whitened by how they vary (Mahalanobis 1936),
as that of a task's cost without states (models/controllers/task_cost.py).

Letters: B worlds, M states, G goals, S samples of data, P patches, D latent width, F = P D.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.controllers.task_cost import MAX_WHITENED, whitening_of
from models.dynamics.dynamics import State
from models.planning.plan import GoalPlanner, Objective, Plan
from models.world import World

MIN_TO_WHITEN = 8
"""Goals that are enough to show how they vary."""


def goal_set_distance(world: World, goals: Tensor, sample: Tensor | None = None) -> Objective:
    """Return the distance from a set of goals, latents (G, N) or (G, P, D).

    A few goals, or latents of more than `MAX_WHITENED` numbers: that from the nearest.
    sample: latents of the data, (S, N) or (S, P, D), whose scale `MIN_TO_WHITEN` goals or more are
    whitened on.
    """
    if len(goals) < MIN_TO_WHITEN or world.vectors(goals[:1]).numel() > MAX_WHITENED:
        return NearestGoalDistance(world, goals)
    assert sample is not None, "whitening needs the scale of the data"
    return WhitenedGoalDistance(world, goals, sample)


class NearestGoalDistance:
    """Mean squared distance of latents, as vectors, from those of the nearest goal."""

    per_block = False

    def __init__(self, world: World, goals: Tensor) -> None:
        self.start = world.vectors
        self.goals = world.vectors(goals)

    def follow(self, tracked: Tensor, actions: Tensor, latents: Tensor) -> Tensor:
        return self.start(latents)

    def cost(self, tracked: Tensor, goal: Tensor | None = None) -> Tensor:
        """(M, P, D) -> (M,); a goal is not looked at, since the set is known."""
        return squared_distances(tracked, self.goals).amin(1)


class WhitenedGoalDistance:
    """Distance of latents, as vectors, from the mean of the goals, in standard deviations of these.

    A direction in which they hardly vary counts up to ten times as much as in the data.
    """

    per_block = False

    def __init__(self, world: World, goals: Tensor, sample: Tensor) -> None:
        self.world = world
        x = world.vectors(sample).flatten(1).float()
        self.mean, self.std = x.mean(0), x.std(0).clamp(min=1e-4)
        features = self.start(goals)
        self.goal = features.mean(0)
        self.whitening = whitening_of(features)

    def start(self, latents: Tensor) -> Tensor:
        """(M, N) or (M, P, D) -> (M, F), of unit variance in the data."""
        return (self.world.vectors(latents).flatten(1).float() - self.mean) / self.std

    def follow(self, tracked: Tensor, actions: Tensor, latents: Tensor) -> Tensor:
        return self.start(latents)

    def cost(self, tracked: Tensor, goal: Tensor | None = None) -> Tensor:
        """(M, F) -> (M,); a goal is not looked at, since the set is known."""
        return ((tracked - self.goal) @ self.whitening).square().mean(1).sqrt()


class GoalsInTurn:
    """Plans towards one goal of a set after the other, with what can be given only one.

    Each has some plans: what reaches a single goal would dither between several.
    """

    def __init__(self, planner: GoalPlanner, plans_per_goal: int) -> None:
        self.planner, self.plans_per_goal = planner, plans_per_goal
        self.horizon, self.action_block = planner.horizon, planner.action_block
        self.reset()

    def reset(self) -> None:
        """Begin with the first goal."""
        self.num_plans = 0
        self.planner.reset()

    def plan(
        self,
        state: State,
        goal: Tensor,
        last_action: Tensor | None,
        warm_start: Tensor | None = None,
        stalls: Tensor | None = None,
    ) -> Plan:
        """goal: latents of sets, (B, G, N) codes or (B, G, P, D); the rest as `Planner.plan`."""
        turn = self.num_plans // self.plans_per_goal % goal.shape[1]
        self.num_plans += 1
        return self.planner.plan(state, goal[:, turn], last_action, warm_start, stalls)


def squared_distances(vectors: Tensor, goals: Tensor) -> Tensor:
    """Mean squared distances of (M, P, D) from each of (G, P, D): (M, G)."""
    pairs = torch.cdist(vectors.flatten(1).float(), goals.flatten(1).float())
    return pairs.square() / goals[0].numel()
