"""Planning towards a goal, as play is told to, and what several players share of it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import cast, get_args

from data.shards.episode_dataset import EpisodeDataset
from models.world import World
from pipeline.play.autopilot import Autopilot
from pipeline.play.game import Game
from pipeline.play.goal_actor import GoalActor
from pipeline.play.goal_planners import (
    GoalSettings,
    GoalSource,
    MakeExecutor,
    best_source,
    make_executor,
)
from pipeline.play.goals import TASK, Goal, find_goal, own_task_goal
from pipeline.play.play_config import Config
from pipeline.play.player import Player, Start


def make_goal_executor(
    config: Config, source: GoalSource | None, world: World, goal: Goal
) -> MakeExecutor:
    """source: what acts, by default the best of the run."""
    settings = GoalSettings(
        config.planner, config.goal_offset, config.task_planner,
        config.task_receding_horizon, config.task_patience, config.best_of_n, config.cuda_graph,
        config.code_planner,
    )  # fmt: skip
    source = source or best_source(config.run, world, goal)
    return make_executor(source, config.run, world, goal, settings)


class SharedPlanning:
    """What all who play towards a goal have in common: the goal, the planner and its thread."""

    def __init__(self, config: Config, world: World, dataset: EpisodeDataset) -> None:
        self.config, self.world, self.dataset = config, world, dataset
        named = config.actions in get_args(GoalSource)
        self.source: GoalSource | None = cast(GoalSource, config.actions) if named else None
        self._goal: Goal | None = None
        """One that has no time; its pose alone depends on the start."""
        self._executors: dict[tuple[object, ...], MakeExecutor] = {}
        self._thread = ThreadPoolExecutor(1, "planner")

    def autopilot(self, player: Player) -> Autopilot:
        threaded = not self.config.cuda_graph
        return Autopilot(
            player, self._find, lambda goal: self._actor(player, goal), threaded, self._thread
        )

    def begin(self, game: Game) -> None:
        """Let the planner act from the start, where --actions names one."""
        if self.source is not None and game.autopilot and (problem := game.autopilot.toggle()):
            raise ValueError(problem)

    def _find(self, start: Start) -> Goal:
        config, kept = self.config, self._goal
        if kept is not None and kept.pose is not None and start.goal is None:
            kept = None
        if kept is None:
            names = config.goal or (TASK,)
            goal = find_goal(names, config.run, self.world, self.dataset, start, config.goal_offset)
        elif kept.is_task and start.goal is not None:
            goal = own_task_goal(kept, config.run, start)  # of the cost that is loaded
        else:
            goal = kept
        self._goal = None if goal.has_time else goal
        return goal

    def _actor(self, player: Player, goal: Goal) -> GoalActor:
        has_pose = goal.pose is not None  # which is given with each plan, but decides what may act
        kind = (goal.objective, goal.has_time, goal.action_block, goal.is_task, has_pose)
        if kind not in self._executors:
            self._executors[kind] = make_goal_executor(self.config, self.source, self.world, goal)
        observes = self.config.observe_simulator
        return GoalActor(player, self._executors[kind], goal, observes, draw_plans=True)
