"""Planning in a world that is known by heart."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import Tensor

from data.actions import ActionSpec
from models.controllers.planner import Planner, PlannerConfig, interpolate
from models.dynamics.dynamics import State

Method = Literal["cem", "mppi", "gradient", "shooting"]
POINTER = ActionSpec("continuous", ("x", "y"), (0.0, 0.0), (100.0, 100.0), pointer=True)


class Nothing:
    def select(self, index: Tensor) -> Nothing:
        return self


class Follower:
    """A point that goes half of the way to the action at each step: latents (B, 1, 2)."""

    actions = POINTER
    device = torch.device("cpu")

    def vectors(self, latents: Tensor) -> Tensor:
        return latents

    def state(self, places: Tensor) -> State:
        rows = torch.ones(len(places))
        return State(places[:, None], 0 * rows, rows, Nothing())

    def rollout(self, state: State, actions: Tensor) -> State:
        return self.imagine(state, POINTER.normalize(actions))

    def imagine(self, state: State, actions: Tensor) -> State:
        place = state.latents[:, 0]
        for action in actions.unbind(1):
            place = place + 0.5 * (action - place)
        return self.state(place)


def planner(method: Method, **changes) -> Planner:
    config = PlannerConfig(
        method, num_samples=64, iterations=12, num_elites=8, horizon=2, action_block=3
    )
    return Planner(replace(config, **changes), Follower())  # type: ignore[arg-type]


STARTS = torch.tensor([[-0.5, -0.5], [0.4, 0.1], [0.0, 0.8]])
GOALS = torch.tensor([[0.5, 0.2], [-0.4, 0.6], [0.1, -0.9]])


@pytest.mark.parametrize("method, near", [("cem", 0.02), ("mppi", 0.05), ("gradient", 0.1)])
def test_a_plan_ends_at_the_goal(method: Method, near: float) -> None:
    world = Follower()
    plan = planner(method).plan(world.state(STARTS), GOALS[:, None], None, None)
    assert plan.actions.shape == (3, 6, 2) and plan.knots.shape == (3, 3, 2)
    assert plan.actions.min() >= 0 and plan.actions.max() <= 100
    end = world.rollout(world.state(STARTS), plan.actions).latents[:, 0]
    assert (end - GOALS).norm(dim=1).max() < near
    assert torch.allclose(plan.cost, (end - GOALS).square().mean(1), atol=1e-6)


@pytest.mark.parametrize("method", ["cem", "mppi", "gradient"])
def test_searching_beats_shooting_with_the_same_samples(method: Method) -> None:
    state = Follower().state(STARTS)
    once = planner("shooting", iterations=1).plan(state, GOALS[:, None], None, None)
    shot = planner("shooting").plan(state, GOALS[:, None], None, None)
    found = planner(method).plan(state, GOALS[:, None], None, None)
    assert bool((shot.cost <= once.cost).all())
    assert found.cost.mean() < shot.cost.mean()


@pytest.mark.parametrize("method", ["cem", "mppi", "gradient", "shooting"])
def test_a_plan_is_the_same_whatever_stands_beside_it(method: Method) -> None:
    world = Follower()
    together = planner(method).plan(world.state(STARTS), GOALS[:, None], None, None)
    parts = planner(method, max_parallel=64).plan(world.state(STARTS), GOALS[:, None], None, None)
    alone = planner(method).plan(world.state(STARTS[1:2]), GOALS[1:2, None], None, None)
    assert torch.equal(together.actions, parts.actions)
    assert torch.equal(together.actions[1:2], alone.actions)


def test_another_seed_draws_other_candidates() -> None:
    state = Follower().state(STARTS)
    goals = GOALS[:, None]
    one, two = (planner("shooting", seed=s).plan(state, goals, None, None) for s in (0, 1))
    assert not torch.equal(one.actions, two.actions)


def test_a_way_begins_at_the_last_action() -> None:
    last = torch.tensor([[10.0, 20.0], [50.0, 50.0], [90.0, 0.0]])
    plan = planner("cem").plan(Follower().state(STARTS), GOALS[:, None], last, None)
    assert torch.allclose(plan.knots[:, 0], POINTER.normalize(last))
    assert torch.allclose(plan.actions[:, 0], last + (plan.actions[:, 2] - last) / 3, atol=1e-3)


def test_a_search_from_a_good_way_is_no_worse_than_it() -> None:
    state = Follower().state(STARTS)
    good = planner("cem").plan(state, GOALS[:, None], None, None)
    again = planner("cem", warm_start_iterations=1).plan(state, GOALS[:, None], None, good.knots)
    assert bool((again.cost <= good.cost + 1e-7).all())


class Straight:
    """Answers with a leg straight to the goal, asked anew at its end."""

    action_block = 3

    def __init__(self) -> None:
        self.asked: list[Tensor] = []

    def __call__(self, latents: Tensor, goal: Tensor, last: Tensor) -> Tensor:
        self.asked.append(latents[:, 0])
        return goal[:, 0]


CONFIG = PlannerConfig(
    num_samples=1, iterations=9, warm_start_iterations=1, num_elites=1, horizon=2, action_block=3
)


def test_a_search_begins_from_the_way_that_a_guide_goes_in_imagination() -> None:
    world, straight = Follower(), Straight()
    state, last = world.state(STARTS), torch.full((3, 2), 50.0)
    guided = Planner(CONFIG, world, policy_prior=straight)  # type: ignore[arg-type]
    plan = guided.plan(state, GOALS[:, None], last, None)
    assert torch.allclose(plan.knots, torch.stack([0 * GOALS, GOALS, GOALS], 1))
    there = world.rollout(state, plan.actions[:, :3]).latents[:, 0]
    assert torch.equal(straight.asked[0], STARTS) and torch.allclose(straight.asked[1], there)
    with pytest.raises(ValueError, match=r"legs of 4 actions .* --planner.leg 3"):
        Planner(replace(CONFIG, action_block=4), world, policy_prior=straight)  # type: ignore[arg-type]


def test_what_is_left_of_a_plan_is_kept_where_the_guide_has_nothing_better() -> None:
    world = Follower()
    state = world.state(STARTS)
    guided = Planner(CONFIG, world, policy_prior=Straight())  # type: ignore[arg-type]
    good = planner("cem").plan(state, GOALS[:, None], None, None).knots
    bad = torch.zeros_like(good)
    kept = guided.plan(state, GOALS[:, None], None, good)
    assert torch.equal(kept.knots, good)
    left = guided.plan(state, GOALS[:, None], None, bad)
    assert torch.equal(left.knots[:, 1:], GOALS[:, None].expand(-1, 2, -1))


class Wall(Follower):
    """Nothing passes the middle from left to right but above 0.5."""

    def imagine(self, state: State, actions: Tensor) -> State:
        place = state.latents[:, 0]
        for action in actions.unbind(1):
            moved = place + 0.5 * (action - place)
            stopped = (place[:, 0] < 0) & (moved[:, 0] >= 0) & (moved[:, 1] < 0.5)
            held = torch.stack([moved[:, 0].clamp(max=-0.01), moved[:, 1]], 1)
            place = torch.where(stopped[:, None], held, moved)
        return self.state(place)


def test_a_way_led_astray_goes_around_what_the_guides_own_does_not() -> None:
    world = Wall()
    state, goals = world.state(STARTS[:1]), GOALS[:1, None]
    config = PlannerConfig(
        num_samples=64,
        warm_start_iterations=3,
        num_elites=8,
        horizon=4,
        action_block=3,
        warm_start_std=0.02,
    )
    stuck, free = (
        Planner(replace(config, prior_noise_std=detour), world, policy_prior=Straight())  # type: ignore[arg-type]
        .plan(state, goals, None, None)
        .cost
        for detour in (0.0, 0.6)
    )
    assert stuck > 0.1 and free < 1e-3


def test_a_guided_plan_is_the_same_whatever_stands_beside_it() -> None:
    world = Follower()
    config = PlannerConfig(
        num_samples=64, warm_start_iterations=3, num_elites=8, horizon=2, action_block=3
    )

    def plan(rows: slice, candidates: int) -> Tensor:
        changed = replace(config, max_parallel=candidates)
        guided = Planner(changed, world, policy_prior=Straight())  # type: ignore[arg-type]
        return guided.plan(world.state(STARTS[rows]), GOALS[rows, None], None, None).actions

    together = plan(slice(3), 8192)
    assert torch.equal(together, plan(slice(3), 64))
    assert torch.equal(together[1:2], plan(slice(1, 2), 8192))


def test_what_is_left_of_a_way_is_revised_in_the_legs_that_are_left() -> None:
    state = Follower().state(STARTS)
    good = planner("cem").plan(state, GOALS[:, None], None, None)
    once = planner("cem", warm_start_iterations=1, num_samples=1)
    rest = once.plan(state, GOALS[:, None], None, good.knots[:, 1:])
    assert rest.actions.shape == (3, 3, 2)
    assert torch.equal(rest.knots, good.knots[:, 1:])  # the one candidate of the one iteration


def test_going_along_is_even_and_arrives() -> None:
    ends = torch.tensor([[[0.0], [1.0], [-1.0]]])
    assert interpolate(ends, 2)[0, :, 0].tolist() == [0.5, 1.0, 0.0, -1.0]


def test_codes_of_actions_are_refused() -> None:
    class Keys(Follower):
        actions = ActionSpec("discrete", ("stay", "left"))

    with pytest.raises(ValueError, match="codes of actions"):
        Planner(PlannerConfig(), Keys())  # type: ignore[arg-type]
