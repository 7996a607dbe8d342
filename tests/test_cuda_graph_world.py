"""Recorded steps and searches are the steps and searches; on a CPU a stand-in records them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_planner import GOALS, STARTS, Follower, Straight
from untrained_run import write_run

from data.clips import Clips
from data.shards import EpisodeDataset
from data.toy import write_toy_shards
from models.controllers.planner import Planner, PlannerConfig
from models.dynamics.dynamics import State
from pipeline.graphed import WARMUP_CALLS
from pipeline.inference.load import load_world
from pipeline.inference.recorded import CudaGraphed, CudaGraphedWorld

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("method", ["codes", "goals"])
def test_a_film_in_a_recorded_world_is_that_of_the_world(tmp_path, method):
    write_toy_shards(tmp_path / "shards", episodes=6, length=20)
    recordings = EpisodeDataset(tmp_path / "shards")
    world = load_world(write_run(tmp_path, recordings, controllers=False, method=method), DEVICE)
    recorded = CudaGraphedWorld(world)
    shown = Clips(recordings, "train", 20).batch(torch.arange(2).numpy()).to(DEVICE)
    films = []
    with torch.no_grad():
        for place in (world, recorded):
            state = place.reset(shown.frames[:, :3], shown.actions[:, :2])
            film = []
            for t in range(
                2, 2 + 2 * WARMUP_CALLS + 4
            ):  # past the warm-up, of every shape on the way
                state = place.step(state, shown.actions[:, t])
                film.append((place.decode(state), state.reward))
            films.append(film)
    for (truth, reward), (seen, again) in zip(*films, strict=True):
        assert torch.equal(truth, seen) and torch.allclose(reward, again, atol=1e-5)
    assert recorded.actions is world.actions


def test_a_state_that_was_left_can_be_gone_on_from():
    world = Follower()
    step = CudaGraphed(lambda state, action: world.rollout(state, action), torch.device("cpu"))
    begun = world.state(STARTS)
    ways = [torch.full((3, 2, 2), float(n)) for n in range(WARMUP_CALLS + 3)]
    ends = [step(begun, way) for way in ways]
    for way, end in zip(ways, ends, strict=True):  # no call has written over another's result
        assert torch.equal(end.latents, world.rollout(begun, way).latents)
    assert torch.equal(begun.latents[:, 0], STARTS)


def test_other_shapes_and_other_nones_are_recorded_apart():
    def add(x: torch.Tensor, y: torch.Tensor | None) -> dict | torch.Tensor:
        return x if y is None else x + y

    recorded = CudaGraphed(add, torch.device("cpu"))
    for _ in range(WARMUP_CALLS + 2):
        for size in (2, 3):
            x = torch.rand(size)
            assert torch.equal(recorded(x, None), x)
            assert torch.equal(recorded(x, x), x + x)


@pytest.mark.parametrize("guide", [None, Straight()])
@pytest.mark.parametrize("method", ["cem", "mppi", "gradient", "shooting"])
def test_a_recorded_plan_is_the_plan(method, guide):
    config = PlannerConfig(
        method, num_samples=32, iterations=4, num_elites=8, horizon=2, action_block=3
    )

    def record(search):
        return CudaGraphed(search, torch.device("cpu"))

    world = Follower()
    plain = Planner(config, world, policy_prior=guide)  # type: ignore[arg-type]
    recorded = Planner(config, world, record, guide)  # type: ignore[arg-type]
    for number in range(WARMUP_CALLS + 2):
        start, goal = world.state(STARTS + 0.01 * number), GOALS[:, None]
        one, two = (p.plan(start, goal, None, None) for p in (plain, recorded))
        assert torch.equal(one.actions, two.actions) and torch.equal(one.cost, two.cost)
        again = recorded.plan(start, goal, one.actions[:, 0], one.knots)
        assert torch.equal(
            again.actions, plain.plan(start, goal, one.actions[:, 0], one.knots).actions
        )


def test_what_is_given_is_put_together_again():
    state = replace(Follower().state(STARTS), reward=torch.arange(3.0))
    seen = CudaGraphed(lambda state, rest: (state, rest), torch.device("cpu"))(
        state, [1, None, "x"]
    )
    assert isinstance(seen[0], State) and seen[0].reward.tolist() == [0, 1, 2]
    assert seen[1] == [1, None, "x"]
