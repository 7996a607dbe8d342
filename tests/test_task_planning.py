"""Planning for a task: running costs, sets of goals, searches that widen, no NaN."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import pytest
import torch
from test_planner import GOALS, STARTS, Follower
from torch import Tensor

from models.dynamics.dynamics import State
from models.planning.candidates import worst_if_not_finite
from models.planning.plan import Plan
from models.planning.plan_executor import PlanExecutor
from models.planning.planner import MAX_LEVEL, Planner, PlannerConfig

CONFIG = PlannerConfig(
    num_samples=64, iterations=12, warm_start_iterations=6, num_elites=8, horizon=4, action_block=2
)


class Distance:
    """Distance from the origin along the first axis alone; counts what it is asked."""

    per_block = True

    def __init__(self) -> None:
        self.blocks: list[int] = []

    def start(self, latents: Tensor) -> Tensor:
        return latents[:, 0, 0]

    def follow(self, tracked: Tensor, actions: Tensor, latents: Tensor) -> Tensor:
        self.blocks.append(actions.shape[1])
        return latents[:, 0, 0]

    def cost(self, tracked: Tensor, goal: Tensor) -> Tensor:
        return tracked.abs()


class ToTheGoal:
    action_block = 2

    def __call__(self, latents: Tensor, goal: Tensor, last_action: Tensor) -> Tensor:
        return goal[:, 0]


class AwayFromIt:
    action_block = 2

    def __call__(self, latents: Tensor, goal: Tensor, last_action: Tensor) -> Tensor:
        return -goal[:, 0]


def plan(config: PlannerConfig, objective=None, prior=None, goal=None, **more) -> Plan:
    world = Follower()
    planner = Planner(config, world, policy_prior=prior, objective=objective)  # type: ignore[arg-type]
    goal = GOALS[:, None] if goal is None else goal
    return planner.plan(world.state(STARTS), goal, torch.full((3, 2), 50.0), None, **more)


def test_an_objective_is_asked_after_every_block() -> None:
    objective = Distance()
    found = plan(CONFIG, objective)
    assert set(objective.blocks) == {2} and len(objective.blocks) == 12 * 4
    end = Follower().rollout(Follower().state(STARTS), found.actions).latents[:, 0]
    assert end[:, 0].abs().max() < 0.02
    assert torch.allclose(cast(Tensor, found.start_cost), STARTS[:, 0].abs())


def test_a_running_cost_hurries() -> None:
    def first_block(weight: float) -> Tensor:
        found = plan(replace(CONFIG, running_weight=weight), Distance())
        return Follower().rollout(Follower().state(STARTS), found.actions[:, :2]).latents[:, 0, 0]

    patient, hurried = first_block(0.0).abs(), first_block(0.9).abs()
    assert hurried.sum() < patient.sum()


def test_a_running_cost_of_0_is_the_cost_at_the_end() -> None:
    whole = plan(CONFIG)
    end = Follower().rollout(Follower().state(STARTS), whole.actions).latents[:, 0]
    assert torch.allclose(whole.cost, (end - GOALS).square().mean(1), atol=1e-6)


def test_any_goal_of_a_set_will_do_and_proposals_try_each() -> None:
    goals = torch.stack([GOALS, -GOALS], dim=1)[:, :, None]  # (3, 2, 1, 2)
    asked: list[Tensor] = []

    class Prior(ToTheGoal):
        def __call__(self, latents: Tensor, goal: Tensor, last_action: Tensor) -> Tensor:
            asked.append(goal[:, 0])
            return goal[:, 0]

    few = replace(CONFIG, num_samples=4, num_elites=2, prior_noise_std=0.0)
    plan(few, Distance(), Prior(), goals)
    first = asked[0].view(3, 4, 2)
    assert torch.equal(first[:, 0], GOALS) and torch.equal(first[:, 1], -GOALS)
    assert torch.equal(first[:, 2], GOALS) and torch.equal(first[:, 3], -GOALS)


def test_what_is_not_finite_is_the_worst_candidate_and_never_an_action() -> None:
    class Broken(Distance):
        def cost(self, tracked: Tensor, goal: Tensor) -> Tensor:
            return torch.where(tracked > 0.1, torch.nan, tracked.abs())

    class BrokenPrior(ToTheGoal):
        def __call__(self, latents: Tensor, goal: Tensor, last_action: Tensor) -> Tensor:
            odd = torch.arange(len(goal))[:, None] % 2 == 1
            return torch.where(odd, torch.nan, goal[:, 0])

    class Nowhere(Distance):
        def cost(self, tracked: Tensor, goal: Tensor) -> Tensor:
            return torch.full_like(tracked, torch.nan)

    for objective, prior in (
        (Broken(), None),
        (Broken(), BrokenPrior()),
        (Nowhere(), BrokenPrior()),
    ):
        for method in ("cem", "mppi", "shooting"):
            found = plan(replace(CONFIG, method=method), objective, prior)
            assert found.actions.isfinite().all() and found.knots.isfinite().all()
    costs = torch.tensor([[1.0, torch.nan, 3.0, torch.inf], [torch.nan] * 4])
    assert worst_if_not_finite(costs)[0].tolist() == [1, 3, 3, 3]
    assert not worst_if_not_finite(costs)[1].isfinite().any()


def test_stalls_widen_the_search_of_their_own_world_alone() -> None:
    narrow = replace(CONFIG, num_samples=8, num_elites=2, warm_start_iterations=2)
    free = plan(narrow, prior=AwayFromIt())
    calm = plan(narrow, prior=AwayFromIt(), stalls=torch.zeros(3, dtype=torch.int64))
    assert torch.equal(free.actions, calm.actions)
    stuck = plan(narrow, prior=AwayFromIt(), stalls=torch.tensor([0, 2, 0]))
    assert torch.equal(stuck.actions[[0, 2]], free.actions[[0, 2]])
    assert not torch.equal(stuck.actions[1], free.actions[1])
    assert stuck.actions.shape == free.actions.shape
    much = plan(narrow, prior=AwayFromIt(), stalls=torch.tensor([0, MAX_LEVEL, 0]))
    beyond = plan(narrow, prior=AwayFromIt(), stalls=torch.tensor([0, MAX_LEVEL + 9, 0]))
    assert torch.equal(much.actions, beyond.actions)


class Recorder:
    """Plans of 3 blocks of 2 actions, from costs that are given in advance."""

    horizon, action_block = 3, 2

    def __init__(self, costs: list[list[float]]) -> None:
        self.costs, self.stalls, self.warm_starts = costs, [], []

    def reset(self) -> None: ...

    def plan(self, state, goal, last_action, warm_start=None, stalls=None) -> Plan:
        self.stalls.append(None if stalls is None else stalls.tolist())
        self.warm_starts.append(warm_start)
        rows = len(goal)
        knots = torch.arange(4.0)[None, :, None].expand(rows, -1, 1)
        cost = torch.tensor(self.costs[len(self.stalls) - 1])
        return Plan(torch.zeros(rows, 6, 1), knots, cost, cost)


def test_plans_for_a_task_keep_their_length_and_count_what_makes_no_progress() -> None:
    planner = Recorder([[1.0, 1.0], [0.5, 1.0], [0.4, 0.999], [0.4, 1.2], [0.1, 0.5]])
    executor = PlanExecutor(planner, 2, patience=2)  # type: ignore[arg-type]
    for _ in range(5 * 2):
        executor.act(cast(State, object()), torch.zeros(2, 1, 1))
    assert planner.stalls == [None, [0, 0], [0, 0], [0, 1], [0, 1]]
    rest = planner.warm_starts[1]
    assert rest is not None and rest[0, :, 0].tolist() == [1, 2, 3, 3]
    executor.reset()
    assert executor.lowest_cost is None and executor.since_progress is None


def test_small_falls_of_the_cost_add_up_to_progress() -> None:
    """One world falls by 1.5% a plan, one by 0.2%, and one stays."""
    costs = [[0.985**number, 0.998**number, 1.0] for number in range(6)]
    planner = Recorder(costs)
    executor = PlanExecutor(planner, 2, patience=2)  # type: ignore[arg-type]
    for _ in range(6 * 2):
        executor.act(cast(State, object()), torch.zeros(3, 1, 1))
    assert planner.stalls[1:] == [[0, 0, 0], [0, 0, 0], [0, 1, 1], [0, 1, 1], [0, 2, 2]]


def test_towards_a_goal_in_time_nothing_is_counted() -> None:
    planner = Recorder([[1.0], [1.0]])
    executor = PlanExecutor(planner, 2)  # type: ignore[arg-type]
    for _ in range(4):
        executor.act(cast(State, object()), torch.zeros(1, 1, 1))
    assert planner.stalls == [None, None]
    rest = planner.warm_starts[1]
    assert rest is not None and rest[0, :, 0].tolist() == [1, 2, 3]


@pytest.mark.parametrize("rows", [[0], [1]])
def test_worlds_that_ended_are_not_counted(rows: list[int]) -> None:
    planner = Recorder([[1.0, 1.0], [1.0], [1.0], [1.0]])
    executor = PlanExecutor(planner, 2, patience=1)  # type: ignore[arg-type]
    goals, index = torch.zeros(2, 1, 1), torch.tensor(rows)
    executor.act(cast(State, object()), goals)
    executor.act(None, goals)
    for _ in range(3):
        executor.act(cast(State, object()), goals, None, index)
        executor.act(None, goals)
    assert planner.stalls[1:] == [[0], [1], [2]]
