"""Goals and planners that several players share: each has the goal of the own start."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from models.controllers.task_cost import TaskCost
from pipeline.play import goals, shared_planning
from pipeline.play.goals import Goal
from pipeline.play.play_config import Config
from pipeline.play.player import Start
from pipeline.play.shared_planning import SharedPlanning

POSES = ((180.0, 300.0, 1.0), (90.0, 60.0, 2.0))


class Cost(TaskCost):
    """One that knows where its goal lies in a frame."""

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)
        self.frame = cast(Any, SimpleNamespace(is_known=True))


@pytest.fixture
def planning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SharedPlanning:
    """Of a run whose task is loaded by `loaded`, and whose executors name their goals."""

    def load(*_: Any) -> Goal:
        loaded.append(Cost())
        image = np.zeros((4, 4, 3), np.uint8)
        return Goal("the task", torch.zeros(1, 3, 2), image, loaded[-1], 5, is_task=True)

    loaded: list[TaskCost] = []
    monkeypatch.setattr(goals, "task_goal", load)
    monkeypatch.setattr(
        shared_planning, "make_goal_executor", lambda config, source, world, goal: lambda: goal
    )
    made = SharedPlanning(Config(run=tmp_path), cast(Any, None), cast(Any, None))
    cast(Any, made).loaded = loaded
    return made


def start(pose: tuple[float, ...] | None) -> Start:
    frames = np.zeros((1, 4, 4, 3), np.uint8)
    goal = None if pose is None else np.array(pose)
    return Start(0, 0, frames, frames[:0], frames, frames[:0], None, np.zeros(2), goal)


def test_each_start_has_the_goal_of_its_own_episode(planning: Any):
    found = [planning._find(start(pose)) for pose in (*POSES, POSES[0])]
    for goal, pose in zip(found, (*POSES, POSES[0]), strict=True):
        assert goal.pose.tolist() == [list(pose)] == goal.latents.tolist()
    assert len(planning.loaded) == 1  # the cost is loaded once, and so are its planners
    assert len({id(goal.objective) for goal in found}) == 1
    assert planning._find(start(None)).pose is None  # the task's own


def test_a_goal_that_all_starts_share_is_found_once(planning: Any):
    first = planning._find(start(None))
    assert planning._find(start(None)) is first and len(planning.loaded) == 1


def test_a_planner_is_shared_by_all_poses_and_is_another_one_without(planning: Any):
    player: Any = SimpleNamespace()
    posed = [planning._find(start(pose)) for pose in POSES]
    plain = Goal("the task", torch.zeros(1, 3, 2), posed[0].image, posed[0].objective, 5,
                 is_task=True)  # fmt: skip
    one, other, third = (planning._actor(player, goal) for goal in (*posed, plain))
    assert one.make_executor is other.make_executor is not third.make_executor
    assert [actor.goal.pose is None for actor in (one, other, third)] == [False, False, True]
