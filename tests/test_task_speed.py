"""Latency of a decision on the task of the committed run."""

from types import SimpleNamespace

import pytest
import torch

from bench.areas import task_speed
from bench.areas.play_speed import DEFAULT_RUN, start_clip
from bench.races.pairs import Incorrect, Options
from models.planning.best_of_n import BestOfN, BestOfNConfig
from pipeline.inference.load_world import load_world
from pipeline.play.goal_planners import load_proposer
from pipeline.play.goals import task_goal


@pytest.fixture(scope="module")
def search():
    world = load_world(DEFAULT_RUN, torch.device("cpu"))
    goal = task_goal(DEFAULT_RUN, world)
    policy = load_proposer(DEFAULT_RUN, world, goal, "auto")
    assert policy and goal.objective and goal.action_block
    return BestOfN(BestOfNConfig(num_samples=4), world, policy, goal.objective, goal.action_block)


@pytest.mark.slow
def test_decisions_of_the_search_and_of_the_policy_are_measured(monkeypatch):
    monkeypatch.setattr(task_speed, "time_call", lambda run, device: 0.01)
    found = list(task_speed.rows(Options(quick=True)))
    assert [row.name.split(",")[0] for row in found] == ["observe and plan"] * 2
    assert [row.target for row in found] == [1500.0, 20.0]
    assert all(row.passed and row.unit == "ms" and row.rounds == 50 for row in found)


def test_a_search_that_does_not_choose_the_best_is_not_timed(search, monkeypatch):
    decide = task_speed.Decision(search.world, search, *start_clip(DEFAULT_RUN, search.world))
    task_speed.check_search(search, decide.state)
    real = search.search

    def worse(state, noise, poses=None):
        found = real(state, noise, poses)
        several = noise.candidates.shape[1] > 1
        return SimpleNamespace(cost=found.cost * (1.5 if several else 1.0))

    monkeypatch.setattr(search, "search", worse)
    with pytest.raises(Incorrect, match="the best alone"):
        task_speed.check_search(search, decide.state)


def test_a_planner_that_does_not_look_is_not_timed(search):
    policy, world = search.policy, search.world
    decide = task_speed.Decision(world, policy, *start_clip(DEFAULT_RUN, world))
    decide.check()
    same = policy.plan(decide.state, None, decide.action)
    blind = SimpleNamespace(plan=lambda *_: same, reset=lambda: None)
    decide.planner = blind  # type: ignore[assignment]
    with pytest.raises(Incorrect, match="mirrored"):
        decide.check()


def test_a_run_without_a_task_is_a_row_that_says_so(monkeypatch):
    monkeypatch.setattr(task_speed, "load_task_cost", lambda run, world: None)
    (row,) = task_speed.rows(Options(quick=True))
    assert row.ours is None and "holds no task cost" in row.note and not row.failed
