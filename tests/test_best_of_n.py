"""The best of an imitator's chunks, in a world with known dynamics."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from test_flow_policy import POINT, SMALL, demos, fit
from test_planner import POINTER, Follower
from torch import Tensor

from models.controllers.flow_policy import FlowPolicy
from models.planning.best_of_n import BestOfN, BestOfNConfig
from models.planning.goal_set import NearestGoalDistance
from models.planning.plan import Objective
from models.planning.plan_executor import PlanExecutor

UP = torch.tensor([[[0.0, 0.8]]])
CONFIG = BestOfNConfig(num_samples=16, num_chunks=1, noise_scale=1.0, knot_std=0.05)


@pytest.fixture(scope="module")
def policy() -> FlowPolicy:
    """Goes round an obstacle, up or down as often."""
    torch.manual_seed(0)
    # whole chunks: it has forgotten which way it went when it plans the next one
    model = FlowPolicy(replace(SMALL, receding_horizon=4), POINT, POINTER)
    fit(model, 600)
    return model


def best_of_n(policy: FlowPolicy, objective: Objective | None = None, **changes: Any) -> BestOfN:
    world: Any = Follower()
    objective = objective or NearestGoalDistance(world, UP)
    return BestOfN(replace(CONFIG, **changes), world, policy, objective, block=2)


def starts(count: int = 50) -> Tensor:
    torch.manual_seed(2)
    return demos(count).require("latents")[0][:, 0, 0]


def ends(planner: BestOfN, places: Tensor) -> Tensor:
    world = Follower()
    actions = planner.plan(world.state(places), None, None).actions
    return world.rollout(world.state(places), actions).latents[:, 0]


def test_it_takes_the_way_that_costs_less_where_the_policy_takes_either(policy: FlowPolicy):
    places = starts()
    own = policy.sample(places[:, None], torch.randn(len(places), 4, 2))[:, -1, 1] > 0
    assert 0.2 < own.float().mean() < 0.8
    assert (ends(best_of_n(policy), places)[:, 1] > 0.2).all()


def test_more_candidates_cost_less(policy: FlowPolicy):
    state = Follower().state(starts())
    one, few, many = (
        best_of_n(policy, num_samples=n).plan(state, None, None).cost.mean() for n in (1, 4, 64)
    )
    assert many < few < one


def test_the_cost_of_a_plan_is_that_of_its_rollout(policy: FlowPolicy):
    places, world = starts(), Follower()
    plan = best_of_n(policy, running_weight=0.25).plan(world.state(places), None, None)
    state, costs = world.state(places), []
    for actions in plan.actions.split(2, dim=1):
        state = world.rollout(state, actions)
        costs.append((state.latents - UP).square().mean((1, 2)))
    assert torch.allclose(plan.cost, 0.75 * costs[1] + 0.25 * torch.stack(costs).mean(0), atol=1e-5)
    assert plan.start_cost is not None
    assert torch.allclose(plan.start_cost, (places - UP[0]).square().mean(1))


def test_a_plan_depends_neither_on_the_other_worlds_nor_on_the_batch(policy: FlowPolicy):
    world, places = Follower(), starts()
    together = best_of_n(policy).plan(world.state(places), None, None)
    in_parts = best_of_n(policy, max_parallel=48).plan(world.state(places), None, None)
    alone = best_of_n(policy).plan(world.state(places[7:8]), None, None)
    assert torch.allclose(together.actions, in_parts.actions, atol=1e-3)
    assert torch.allclose(together.actions[7:8], alone.actions, atol=1e-3)


def test_plans_repeat_after_a_reset_and_differ_within_an_episode(policy: FlowPolicy):
    planner, state = best_of_n(policy), Follower().state(starts())
    first, second = (planner.plan(state, None, None).actions for _ in range(2))
    planner.reset()
    assert torch.equal(planner.plan(state, None, None).actions, first)
    assert not torch.equal(first, second)


def test_what_cannot_be_told_is_never_chosen(policy: FlowPolicy):
    class Blind(NearestGoalDistance):
        """No number for half of the candidates."""

        def cost(self, tracked: Tensor, goal: Tensor | None = None) -> Tensor:
            costs = super().cost(tracked, goal)
            unknown = torch.arange(len(costs)) % 2 == 0
            return torch.where(unknown, torch.nan, costs)

    world: Any = Follower()
    plan = best_of_n(policy, Blind(world, UP)).plan(world.state(starts()), None, None)
    assert plan.cost.isfinite().all() and plan.actions.isfinite().all()


def test_stalls_widen_the_proposals(policy: FlowPolicy):
    state = Follower().state(starts())

    def spread(stalls: int) -> float:
        planner = best_of_n(policy, num_samples=2, noise_scale=0.0)
        narrow = policy.sample(state.latents, torch.zeros(len(state), 4, 2))
        levels = torch.full((len(state),), stalls)
        plan = planner.plan(state, None, None, stalls=levels)
        return float((plan.knots[:, 1:3] - narrow[:, :2]).abs().mean())

    assert 0 < spread(0) < spread(4)


def test_an_executor_plays_it_as_the_policy_alone(policy: FlowPolicy):
    executor, world = PlanExecutor(best_of_n(policy, num_chunks=2), 4), Follower()
    state = world.state(starts(3))
    for _ in range(8):
        action = executor.act(state, torch.zeros(3, 1, 1, 2), None)
        state = world.rollout(state, action[:, None])
    assert len(executor.plan_seconds) == 2


def test_a_candidate_is_followed_by_what_the_policy_does_next(policy: FlowPolicy):
    state = Follower().state(starts())
    near, far = (
        torch.cat([planner.plan(state, None, None).cost for _ in range(20)])
        for planner in (best_of_n(policy, num_chunks=n, running_weight=0.0) for n in (1, 3))
    )
    # it goes up or down anew with each chunk
    assert (near < 0.3).float().mean() > 0.95 and 0.2 < (far > 0.3).float().mean() < 0.8


def test_poses_of_goals_are_given_to_the_policy_and_to_the_objective(policy: FlowPolicy):
    seen: list[tuple[str, tuple[int, ...], float]] = []

    class Knows(NearestGoalDistance):
        def cost(self, tracked: Tensor, goal: Tensor) -> Tensor:
            seen.append(("cost", tuple(goal.shape), float(goal[-1, 0])))
            return super().cost(tracked, UP.expand(len(tracked), -1, -1))

    class Asked(FlowPolicy):
        def sample(self, *args: Any, **named: Any) -> Tensor:
            goal = args[3] if len(args) > 3 else named["goal"]
            seen.append(("sample", tuple(goal.shape), float(goal[-1, 0])))
            return super().sample(*args, **named)

    asked = Asked(policy.config, POINT, POINTER)
    world: Any = Follower()
    chooser = best_of_n(asked, Knows(world, UP), num_samples=4, max_parallel=8)
    state = Follower().state(starts(3))
    chooser.plan(state, torch.tensor([[1.0, 0, 0], [2.0, 0, 0], [3.0, 0, 0]]), None)
    assert {kind for kind, _, _ in seen} == {"cost", "sample"}
    assert {(shape, last) for _, shape, last in seen} == {((8, 3), 2.0), ((4, 3), 3.0)}


def test_a_chunk_shorter_than_a_block_is_refused(policy: FlowPolicy):
    world: Any = Follower()
    with pytest.raises(ValueError, match="chunks of 4 actions hold no block .*, 5; give --flow-po"):
        BestOfN(CONFIG, world, policy, NearestGoalDistance(world, UP), block=5)
