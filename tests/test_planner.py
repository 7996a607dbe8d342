"""Planning in a world with known dynamics."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import Tensor

from data.actions import ActionSpec
from models.dynamics.dynamics import State
from models.planning.candidates import interpolate
from models.planning.planner import Planner, PlannerConfig

Method = Literal["cem", "mppi", "gradient", "shooting"]
POINTER = ActionSpec("continuous", ("x", "y"), (0.0, 0.0), (100.0, 100.0), pointer=True)


class NoMemory:
    def select(self, index: Tensor) -> NoMemory:
        return self


class Follower:
    """A point that goes half of the way to the action at each step: latents (B, 1, 2)."""

    actions = POINTER
    device = torch.device("cpu")

    def vectors(self, latents: Tensor) -> Tensor:
        return latents

    def state(self, places: Tensor) -> State:
        rows = torch.ones(len(places))
        return State(places[:, None], 0 * rows, rows, NoMemory())

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


@pytest.mark.parametrize("method, tolerance", [("cem", 0.02), ("mppi", 0.05), ("gradient", 0.1)])
def test_a_plan_ends_at_the_goal(method: Method, tolerance: float) -> None:
    world = Follower()
    plan = planner(method).plan(world.state(STARTS), GOALS[:, None], None, None)
    assert plan.actions.shape == (3, 6, 2) and plan.knots.shape == (3, 3, 2)
    assert plan.actions.min() >= 0 and plan.actions.max() <= 100
    end = world.rollout(world.state(STARTS), plan.actions).latents[:, 0]
    assert (end - GOALS).norm(dim=1).max() < tolerance
    assert torch.allclose(plan.cost, (end - GOALS).square().mean(1), atol=1e-6)


@pytest.mark.parametrize("method", ["cem", "mppi", "gradient"])
def test_optimizers_beat_random_shooting_with_the_same_samples(method: Method) -> None:
    state = Follower().state(STARTS)
    once = planner("shooting", iterations=1).plan(state, GOALS[:, None], None, None)
    shot = planner("shooting").plan(state, GOALS[:, None], None, None)
    found = planner(method).plan(state, GOALS[:, None], None, None)
    assert bool((shot.cost <= once.cost).all())
    assert found.cost.mean() < shot.cost.mean()


@pytest.mark.parametrize("method", ["cem", "mppi", "gradient", "shooting"])
def test_a_plan_does_not_depend_on_other_rows(method: Method) -> None:
    world = Follower()
    together = planner(method).plan(world.state(STARTS), GOALS[:, None], None, None)
    parts = planner(method, max_parallel=64).plan(world.state(STARTS), GOALS[:, None], None, None)
    alone = planner(method).plan(world.state(STARTS[1:2]), GOALS[1:2, None], None, None)
    assert torch.equal(together.actions, parts.actions)
    assert torch.equal(together.actions[1:2], alone.actions)


def test_another_seed_samples_other_candidates() -> None:
    state = Follower().state(STARTS)
    goals = GOALS[:, None]
    one, two = (planner("shooting", seed=s).plan(state, goals, None, None) for s in (0, 1))
    assert not torch.equal(one.actions, two.actions)


def test_a_plan_starts_at_the_last_action() -> None:
    last = torch.tensor([[10.0, 20.0], [50.0, 50.0], [90.0, 0.0]])
    plan = planner("cem").plan(Follower().state(STARTS), GOALS[:, None], last, None)
    assert torch.allclose(plan.knots[:, 0], POINTER.normalize(last))
    assert torch.allclose(plan.actions[:, 0], last + (plan.actions[:, 2] - last) / 3, atol=1e-3)


def test_a_warm_start_never_gets_worse() -> None:
    state = Follower().state(STARTS)
    good = planner("cem").plan(state, GOALS[:, None], None, None)
    again = planner("cem", warm_start_iterations=1).plan(state, GOALS[:, None], None, good.knots)
    assert bool((again.cost <= good.cost + 1e-7).all())


class Straight:
    """A policy prior that moves straight to the goal in one action block."""

    action_block = 3

    def __init__(self) -> None:
        self.queries: list[Tensor] = []

    def __call__(self, latents: Tensor, goal: Tensor, last: Tensor) -> Tensor:
        self.queries.append(latents[:, 0])
        return goal[:, 0]


CONFIG = PlannerConfig(
    num_samples=1, iterations=9, warm_start_iterations=1, num_elites=1, horizon=2, action_block=3
)


def test_a_search_starts_from_the_policy_priors_rollout() -> None:
    world, straight = Follower(), Straight()
    state, last = world.state(STARTS), torch.full((3, 2), 50.0)
    with_prior = Planner(CONFIG, world, policy_prior=straight)  # type: ignore[arg-type]
    plan = with_prior.plan(state, GOALS[:, None], last, None)
    assert torch.allclose(plan.knots, torch.stack([0 * GOALS, GOALS, GOALS], 1))
    there = world.rollout(state, plan.actions[:, :3]).latents[:, 0]
    assert torch.equal(straight.queries[0], STARTS) and torch.allclose(straight.queries[1], there)
    with pytest.raises(ValueError, match=r"action block \(4\) differs .* --planner.action-block 3"):
        Planner(replace(CONFIG, action_block=4), world, policy_prior=straight)  # type: ignore[arg-type]


def test_the_rest_of_a_plan_is_kept_where_the_policy_prior_is_not_better() -> None:
    world = Follower()
    state = world.state(STARTS)
    with_prior = Planner(CONFIG, world, policy_prior=Straight())  # type: ignore[arg-type]
    good = planner("cem").plan(state, GOALS[:, None], None, None).knots
    bad = torch.zeros_like(good)
    kept = with_prior.plan(state, GOALS[:, None], None, good)
    assert torch.equal(kept.knots, good)
    left = with_prior.plan(state, GOALS[:, None], None, bad)
    assert torch.equal(left.knots[:, 1:], GOALS[:, None].expand(-1, 2, -1))


class Wall(Follower):
    """A wall in the middle, open above 0.5."""

    def imagine(self, state: State, actions: Tensor) -> State:
        place = state.latents[:, 0]
        for action in actions.unbind(1):
            moved = place + 0.5 * (action - place)
            stopped = (place[:, 0] < 0) & (moved[:, 0] >= 0) & (moved[:, 1] < 0.5)
            held = torch.stack([moved[:, 0].clamp(max=-0.01), moved[:, 1]], 1)
            place = torch.where(stopped[:, None], held, moved)
        return self.state(place)


def test_a_perturbed_policy_prior_finds_a_detour() -> None:
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
        Planner(replace(config, prior_noise_std=noise), world, policy_prior=Straight())  # type: ignore[arg-type]
        .plan(state, goals, None, None)
        .cost
        for noise in (0.0, 0.6)
    )
    assert stuck > 0.1 and free < 1e-3


def test_a_plan_with_a_policy_prior_does_not_depend_on_other_rows() -> None:
    world = Follower()
    config = PlannerConfig(
        num_samples=64, warm_start_iterations=3, num_elites=8, horizon=2, action_block=3
    )

    def plan(rows: slice, max_parallel: int) -> Tensor:
        changed = replace(config, max_parallel=max_parallel)
        with_prior = Planner(changed, world, policy_prior=Straight())  # type: ignore[arg-type]
        return with_prior.plan(world.state(STARTS[rows]), GOALS[rows, None], None, None).actions

    together = plan(slice(3), 8192)
    assert torch.equal(together, plan(slice(3), 64))
    assert torch.equal(together[1:2], plan(slice(1, 2), 8192))


def test_a_shorter_warm_start_sets_the_horizon() -> None:
    state = Follower().state(STARTS)
    good = planner("cem").plan(state, GOALS[:, None], None, None)
    once = planner("cem", warm_start_iterations=1, num_samples=1)
    rest = once.plan(state, GOALS[:, None], None, good.knots[:, 1:])
    assert rest.actions.shape == (3, 3, 2)
    assert torch.equal(rest.knots, good.knots[:, 1:])  # the one candidate of the one iteration


def test_interpolation_is_linear_and_ends_at_the_knots() -> None:
    knots = torch.tensor([[[0.0], [1.0], [-1.0]]])
    assert interpolate(knots, 2)[0, :, 0].tolist() == [0.5, 1.0, 0.0, -1.0]


def test_discrete_actions_are_refused() -> None:
    class Keys(Follower):
        actions = ActionSpec("discrete", ("stay", "left"))

    with pytest.raises(ValueError, match="discrete actions cannot be interpolated"):
        Planner(PlannerConfig(), Keys())  # type: ignore[arg-type]
