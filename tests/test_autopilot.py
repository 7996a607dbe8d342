"""The planner in the window, without a window: keys T and G, and what is drawn and told."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from pointer_world import PointerWorld, ToTheRight, blue_at
from torch import Tensor

from data.shards.episode_dataset import EpisodeDataset
from data.toy import write_toy_shards
from models.dynamics.dynamics import State
from models.planning.plan import Plan
from models.planning.plan_executor import PlanExecutor
from pipeline.play.autopilot import Autopilot
from pipeline.play.game import Game
from pipeline.play.goal_actor import GoalActor
from pipeline.play.goals import Goal
from pipeline.play.panels import CAPTION_HEIGHT, blend
from pipeline.play.player import Player, Start, StartSampler

TASK = Goal("the task", torch.tensor([[[450, 60]]]), np.zeros((32, 32, 3), np.uint8))


class RollingWorld(PointerWorld):
    def rollout(self, state: State, actions: Tensor) -> State:
        for action in actions.unbind(1):
            state = self.step(state, action)
        return state


class Straight:
    """Plans to go where the disc of the goal is, once it may."""

    horizon, action_block = 4, 5

    def __init__(self) -> None:
        self.may_plan = threading.Event()
        self.may_plan.set()
        self.num_plans = 0

    def reset(self) -> None: ...

    def plan(self, state: State, goal: Tensor, last_action: Any, *rest: Any) -> Plan:
        assert self.may_plan.wait(10)
        self.num_plans += 1
        target = goal[:, 0].float()[:, None]
        return Plan(target.repeat(1, 20, 1), target.repeat(1, 5, 1), torch.zeros(1))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "shards"
    write_toy_shards(folder, episodes=12)
    return folder


class Table:
    """A game and the planner in it."""

    def __init__(self, shards: Path, threaded: bool = True, goal: Goal | None = TASK) -> None:
        dataset, world, self.planner = EpisodeDataset(shards), RollingWorld(), Straight()
        starts = StartSampler(dataset, "test", world.context, seed=0)
        self.player = Player(cast(Any, world), cast(Any, ToTheRight()))
        self.started: list[Start] = []

        def find_goal(start: Start) -> Goal:
            if goal is None:
                raise ValueError("runs/a holds no task cost; python train.py trains one")
            self.started.append(start)
            return goal

        def make_actor(goal: Goal) -> GoalActor:
            executor = lambda: PlanExecutor(cast(Any, self.planner), 5)  # noqa: E731
            return GoalActor(self.player, executor, goal, draw_plans=True)

        self.autopilot = Autopilot(self.player, find_goal, make_actor, threaded)
        folder = shards.parent / "play"
        self.game = Game(
            self.player, starts, starts.at(0), folder, size=64, fps=10, autopilot=self.autopilot
        )

    def steps(self, count: int) -> None:
        target = self.player.steps + count
        while self.player.steps < target:
            self.game.tick()
            self.autopilot.wait()

    def agent(self) -> np.ndarray:
        return np.array(blue_at(self.player.model_frame)) * 512


@pytest.fixture
def table(shards: Path) -> Table:
    return Table(shards)


@pytest.mark.parametrize("threaded", [True, False])
def test_t_lets_the_planner_play_towards_the_task_and_hands_back(shards: Path, threaded: bool):
    table = Table(shards, threaded)
    assert table.autopilot.describe() == "" and not table.started  # nothing is loaded before
    table.game.press("t")
    table.game.move_pointer(3, CAPTION_HEIGHT + 60)  # the mouse does not act now
    table.steps(20)
    assert np.abs(table.agent() - [450, 60]).max() < 20
    assert table.planner.num_plans in (4, 5)  # every fifth step, perhaps ahead of the next
    assert table.autopilot.describe().startswith("planner: towards the task  a plan takes 0.")
    table.game.press("t")
    table.game.move_pointer(3, CAPTION_HEIGHT + 60)
    table.steps(20)
    assert np.abs(table.agent() - [24, 488]).max() < 20
    assert table.autopilot.plan_frame is None


def test_the_window_stays_alive_while_a_plan_is_made(table: Table):
    table.planner.may_plan.clear()
    table.game.press("t")
    for _ in range(3):
        table.game.tick()  # returns although no plan is there
    assert table.player.steps == 0 and "planning" in table.autopilot.describe()
    table.game.press("h")
    assert not table.game.show_help
    table.planner.may_plan.set()
    table.steps(3)
    assert table.player.steps == 3


def test_g_makes_the_present_image_the_goal_and_forgets_it(table: Table):
    table.game.move_pointer(60, CAPTION_HEIGHT + 60)
    table.steps(20)
    place = table.agent()
    table.game.press("g")
    assert table.autopilot.describe() == "goal: the frozen image"
    table.game.move_pointer(4, CAPTION_HEIGHT + 4)
    table.steps(20)
    assert np.abs(table.agent() - place).max() > 100
    table.game.press("t")
    assert "towards the frozen image" in table.autopilot.describe()
    table.steps(20)
    assert np.abs(table.agent() - place).max() < 20
    table.game.press("g")
    assert "towards the task" in table.autopilot.describe()
    table.steps(20)
    assert np.abs(table.agent() - [450, 60]).max() < 20


def test_what_is_missing_is_told_and_g_still_gives_a_goal(shards: Path):
    table = Table(shards, goal=None)
    table.game.press("t")
    assert not table.game.planner_acts
    assert "train.py trains one  G makes the present image the goal" in table.game.status()
    table.game.press("g")
    table.game.press("t")
    assert table.game.planner_acts and "train.py" not in table.game.status()
    table.game.press("g")  # no goal is left
    assert not table.game.planner_acts and "train.py" in table.game.status()


def test_the_planner_and_the_controller_take_turns(table: Table):
    table.game.press("c")
    table.game.press("t")
    assert table.game.planner_acts and not table.game.use_controller
    table.game.press("c")
    assert table.game.use_controller and not table.game.planner_acts
    table.game.press("c")
    assert table.game.person_acts


def test_another_start_drops_a_plan_that_is_being_made(table: Table):
    table.game.press("t")
    table.steps(5)
    table.planner.may_plan.clear()
    table.game.tick()
    stale = table.autopilot._next
    table.game.press("r")
    assert table.player.steps == 0 and table.autopilot.plan_frame is None
    table.planner.may_plan.set()
    assert stale is not None
    stale.result(10)
    assert table.autopilot.plan_frame is None  # it was a plan from elsewhere
    table.steps(20)
    assert np.abs(table.agent() - [450, 60]).max() < 20


@pytest.mark.parametrize("has_time", [True, False])
def test_only_a_goal_in_the_episode_is_another_after_another_start(shards: Path, has_time: bool):
    table = Table(shards, goal=replace(TASK, has_time=has_time))
    table.game.press("t")
    table.game.press("r")
    assert len(table.started) == 1 + has_time
    assert table.started[-1] is table.player.start or not has_time


def test_what_the_plan_ends_in_is_drawn_faintly(table: Table):
    table.game.press("t")
    table.steps(1)
    end = table.autopilot.plan_frame
    assert end is not None
    assert np.abs(np.array(blue_at(end)) * 512 - [450, 60]).max() < 20
    drawn = table.game.render_panels()[CAPTION_HEIGHT:, :64]
    x, y = 450 // 8, 60 // 8  # the disc of the plan's end on white, at 64 pixels
    assert (drawn[y, x] < 255).any() and drawn[y, x].mean() > 180
    before = table.player.model_frame
    table.autopilot.toggle()
    assert (table.game.render_panels()[CAPTION_HEIGHT:, :64][y, x] == 255).all()
    assert table.player.model_frame is before


def test_a_single_step_waits_for_its_plan(table: Table):
    table.game.press("t")
    table.game.press("n")
    for _ in range(4):
        table.game.tick()
        table.autopilot.wait()
    assert table.game.paused and table.player.steps == 1


def test_an_error_of_the_planner_comes_out_in_the_loop(table: Table):
    def fail(*_: Any) -> Plan:
        raise ValueError("no plan")

    table.planner.plan = cast(Any, fail)
    table.game.press("t")
    with pytest.raises(ValueError, match="no plan"):
        table.steps(1)


def test_a_blend_is_between_two_images():
    black, white = np.zeros((2, 2, 3), np.uint8), np.full((2, 2, 3), 255, np.uint8)
    assert (blend(black, white, 0.4) == 102).all() and (blend(white, black, 0.0) == 255).all()
