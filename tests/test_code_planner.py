"""A beam search over codes: it finds what an exhaustive search finds, and is deterministic."""

from __future__ import annotations

import itertools
from typing import Any, cast

import pytest
import torch
from pointer_world import PointerWorld
from square_world import MOVE, NAMES, SIDE, VECTORS, draw, find, square_world

from models.layers.sampling import Sampling
from models.planning.code_planner import LEAST_RISK, CodePlanner, CodePlannerConfig
from models.planning.image_distance import ImageDistance
from models.planning.keypoint_distance import KeypointDistance
from models.planning.plan_executor import PlanExecutor

START, GOAL = torch.tensor([[9.0, 9.0], [20.0, 12.0]]), torch.tensor([[15.0, 9.0], [20.0, 18.0]])


def state_and_goal(world):
    frames = draw(START)[:, None]
    return world.reset(frames, torch.zeros(2, 0)), world.embed(draw(GOAL))


def planner(objective=None, **changes) -> CodePlanner:
    config = CodePlannerConfig(**{"beam_width": 16, "horizon": 3, "action_block": 1} | changes)
    world = square_world()
    return CodePlanner(config, world, ImageDistance(world) if objective else None)


@pytest.mark.parametrize("by_image", [False, True])
def test_plans_lead_to_the_goal_through_codes_of_any_names(by_image: bool):
    search = planner(by_image)
    state, goal = state_and_goal(search.world)
    plan = search.plan(state, goal)
    assert plan.actions.shape == (2, 3) and plan.actions.dtype == torch.int64
    reached = search.world.rollout(state, plan.actions).latents[:, 0]
    assert (reached - GOAL).abs().max() < 1.0
    assert (plan.cost < 0.2 * plan.start_cost).all()  # type: ignore[operator]


def test_a_wide_beam_is_exhaustive():
    search = planner(beam_width=81, horizon=2)
    state, goal = state_and_goal(search.world)
    plan = search.plan(state, goal)
    vectors = MOVE * torch.from_numpy(VECTORS).float()[torch.from_numpy(NAMES).argsort()]
    for row in range(2):
        ends = [
            float((START[row] + vectors[a] + vectors[b] - GOAL[row]).square().mean())
            for a, b in itertools.product(range(9), repeat=2)
        ]
        assert float(plan.cost[row]) == pytest.approx(min(ends), abs=1e-2)


def test_a_plan_depends_on_neither_the_other_worlds_nor_the_batch():
    search = planner()
    state, goal = state_and_goal(search.world)
    together = search.plan(state, goal)
    small = planner(max_parallel=1).plan(state, goal)
    alone = search.plan(state.select(torch.tensor([1])), goal[1:])
    assert torch.equal(together.actions, small.actions)
    assert torch.equal(together.actions[1:], alone.actions)
    assert torch.equal(together.actions, search.plan(state, goal).actions)


def test_a_code_is_held_for_a_block():
    search = planner(horizon=2, action_block=3)
    state, goal = state_and_goal(search.world)
    actions = search.plan(state, goal).actions
    assert actions.shape == (2, 6)
    assert torch.equal(actions[:, :3], actions[:, :1].expand(-1, 3))


def test_the_nearest_of_a_set_of_goals_will_do():
    search = planner()
    state, goal = state_and_goal(search.world)
    far = search.world.embed(draw(torch.tensor([[27.0, 27.0]] * 2)))
    plan = search.plan(state, torch.stack([far, goal], 1))
    assert torch.equal(plan.actions, search.plan(state, goal).actions)


def test_a_replanned_plan_ends_when_the_first_would_have():
    search = planner()
    world = search.world
    state, goal = state_and_goal(world)
    executor = PlanExecutor(search, receding_horizon=1)
    for left in (3, 2, 1):
        action = executor.act(state, goal)
        assert executor.plans is not None and executor.plans.shape == (2, left)
        state = world.step(state, action)
    assert (find(world.decode(state)) - GOAL).abs().max() < 1.0


def test_what_cannot_be_tried_one_by_one_is_refused():
    with pytest.raises(ValueError, match="tries each of at most 64 codes, .* are continuous, 2"):
        CodePlanner(CodePlannerConfig(), cast(Any, PointerWorld()))


def test_a_search_decodes_the_likeliest_and_leaves_the_sampling_of_others_alone():
    search = planner()
    dynamics: Any = search.world.dynamics
    dynamics.sampling = Sampling(temperature=1.0)  # as pictures of all who play are drawn
    state, goal = state_and_goal(search.world)
    searched: list[Sampling] = []
    others: list[Sampling] = []
    step = type(dynamics).step

    def seen(self: Any, state: Any, action: Any) -> Any:
        (others if self is dynamics else searched).append(self.sampling)
        if self is not dynamics:  # another thread comes in between
            search.world.step(state, action)
        return step(self, state, action)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(dynamics), "step", seen)
        search.plan(state, goal)
    assert searched and set(searched) == {LEAST_RISK}
    assert len(others) == len(searched) and set(others) == {Sampling(temperature=1.0)}
    assert dynamics.sampling == Sampling(temperature=1.0)


def test_a_view_with_another_sampling_has_the_same_weights():
    world = square_world()
    assert world.with_sampling(LEAST_RISK) is world  # it samples nothing
    world.dynamics.sampling = Sampling()  # type: ignore[attr-defined]
    view = world.with_sampling(Sampling(2.0))
    assert view.dynamics is not world.dynamics and view.tokenizer is world.tokenizer
    assert view.dynamics.sampling == Sampling(2.0)  # type: ignore[attr-defined]
    pairs = zip(view.parameters(), world.parameters(), strict=True)
    assert all(own is other for own, other in pairs)


def test_a_square_is_nearer_long_before_it_overlaps_its_goal():
    distance = ImageDistance(square_world())
    places = torch.stack([torch.linspace(4, 26, 12), torch.full((12,), 9.0)], 1)
    tracked = distance.start(distance.world.embed(draw(places)))
    assert (distance.cost(tracked, tracked[-1:]).diff() < 0).all()


class Corner(torch.nn.Module):
    """Finds the square twice, as keypoints from -1 to 1."""

    image_size = (SIDE, SIDE)

    def encode(self, frames):
        return (find(frames) / (SIDE / 2) - 1).repeat(1, 2)[:, None]


def test_keypoints_of_what_is_drawn_lead_to_the_goal():
    world = square_world()
    distance = KeypointDistance(world, cast(Any, Corner()))
    tracked = distance.start(world.embed(draw(START)))
    assert tracked.shape == (2, 2, 2)
    # two keypoints, each 6 pixels off
    expected = torch.tensor([2 * 6.0, 2 * 6.0]) / (SIDE / 2)
    found = distance.cost(tracked, distance.start(world.embed(draw(GOAL))))
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0)
    config = CodePlannerConfig(beam_width=16, horizon=3, action_block=1)
    state, goal = state_and_goal(world)
    plan = CodePlanner(config, world, distance).plan(state, goal)
    reached = world.rollout(state, plan.actions).latents[:, 0]
    assert (reached - GOAL).abs().max() < 1.0


def test_keypoints_of_other_frames_are_refused():
    other = cast(Any, Corner())
    other.image_size = (64, 64)
    with pytest.raises(ValueError, match="64 x 64, and this world draws 32 x 32"):
        KeypointDistance(square_world(), other)
