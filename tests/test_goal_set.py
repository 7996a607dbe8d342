"""Sets of goals: how far a state is from any of them, and how one at a time is planned towards."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from models.planning.goal_set import (
    MIN_TO_WHITEN,
    GoalsInTurn,
    NearestGoalDistance,
    WhitenedGoalDistance,
    goal_set_distance,
)
from models.planning.plan import Plan

WORLD: Any = SimpleNamespace(vectors=lambda latents: latents)


def latents(*rows: tuple[float, ...]) -> Tensor:
    """(M, 1, D)"""
    return torch.tensor(rows)[:, None]


def test_any_of_a_few_goals_is_reached_at_no_cost():
    goals = latents((0.0, 0.0), (1.0, 0.0), (0.0, 1.0))
    objective = goal_set_distance(WORLD, goals)
    assert isinstance(objective, NearestGoalDistance)
    for goal in goals:
        assert float(objective.cost(objective.start(goal[None]), goals[:1])) < 1e-6
    cost = objective.cost(objective.start(latents((1.0, 0.5), (3.0, 0.0))), goals[:1])
    assert cost.tolist() == pytest.approx([0.125, 2.0], abs=1e-5)  # mean squares over two numbers


def test_what_differs_among_many_goals_counts_little():
    torch.manual_seed(0)
    data = torch.rand(200, 1, 4)  # two numbers of an agent, two of a block
    goals = torch.rand(MIN_TO_WHITEN + 4, 1, 4)
    goals[..., 2:] = torch.tensor([0.3, 0.7])
    objective = goal_set_distance(WORLD, goals, data)
    assert isinstance(objective, WhitenedGoalDistance)
    agent_away, block_away = latents((0.0, 1.0, 0.3, 0.7), (0.5, 0.5, 0.5, 0.9))
    at_goal = objective.cost(objective.start(goals), goals)
    near, far = objective.cost(objective.start(torch.stack([agent_away, block_away])), goals)
    assert near < 1.5 * at_goal.max() and far > 2 * near


def test_what_never_moves_in_the_data_does_not_count():
    torch.manual_seed(0)
    data, goals = torch.rand(200, 1, 2), torch.rand(12, 1, 2)
    data[..., 1] = goals[..., 1] = 0.5
    cost = WhitenedGoalDistance(WORLD, goals, data)
    assert bool(cost.cost(cost.start(data)).isfinite().all())


class Recorder:
    """A planner that remembers which goal it was given."""

    horizon, action_block = 1, 5

    def __init__(self) -> None:
        self.goals: list[list[float]] = []

    def reset(self) -> None: ...

    def plan(self, state: Any, goal: Tensor, last_action: Any, *rest: Any) -> Plan:
        self.goals.append(goal[:, 0, 0].tolist())
        return Plan(goal, goal, goal)


def test_goals_in_turn_have_some_plans_each_and_begin_again_in_a_new_episode():
    planner = Recorder()
    wrapped = GoalsInTurn(cast(Any, planner), plans_per_goal=2)
    assert (wrapped.horizon, wrapped.action_block) == (1, 5)
    goals = latents((0.0,), (5.0,), (9.0,)).expand(3, 1, 1)[None].repeat(2, 1, 1, 1)
    for plans in (7, 1):
        wrapped.reset()
        for _ in range(plans):
            wrapped.plan(at(torch.zeros(2, 1, 1)), goals, None)
    first, second = zip(*planner.goals, strict=True)
    assert first == second == (0.0, 0.0, 5.0, 5.0, 9.0, 9.0, 0.0, 0.0)


def at(vectors: Tensor) -> Any:
    return SimpleNamespace(latents=vectors)
