"""Acts towards a goal from where a player stands, and shows where its plan ends."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from data.actions import as_tensor
from models.dynamics.dynamics import State
from models.planning.plan_executor import PlanExecutor
from pipeline.play.goal_planners import MakeExecutor
from pipeline.play.goals import Goal
from pipeline.play.player import Player


class GoalActor:
    """Executes plans towards a goal in a player's world.

    With `observe_simulator` the world is moved to the simulator's frames before each plan: the
    plans are carried out in the simulator, and the world shows what it predicts in between.
    """

    def __init__(
        self,
        player: Player,
        make_executor: MakeExecutor,
        goal: Goal,
        observe_simulator: bool = False,
        draw_plans: bool = False,
    ) -> None:
        """draw_plans: keep what each plan ends in, as `plan_frame`."""
        self.player, self.make_executor = player, make_executor
        self.observe_simulator, self.draw_plans = observe_simulator, draw_plans
        self.reset(goal)

    def reset(self, goal: Goal) -> None:
        """Forget the plans; the next ones lead to this goal, planned for as the first."""
        self.goal, self.executor = goal, self.make_executor()
        self.plan_frame: np.ndarray | None = None
        """(H, W, 3) uint8, what the plan ends in, as it was imagined."""

    @property
    def needs_plan(self) -> bool:
        return self.executor.needs_plan

    @property
    def plan_seconds(self) -> float | None:
        """Of the last plan, if there is one."""
        return self.executor.plan_seconds[-1] if self.executor.plan_seconds else None

    def act(self) -> np.ndarray:
        """Return the next action, after a plan where one is needed."""
        return self.prepare()()

    def prepare(self) -> Callable[[], np.ndarray]:
        """Take in where the player stands; what is returned does the rest, in any thread."""
        player = self.player
        if self.observe_simulator and self.needs_plan and player.steps:
            player.observe_simulator()
        past_actions = player.actions or list(player.start.actions)
        last_action = as_tensor(past_actions[-1][None]) if past_actions else None
        return partial(self._act, self.executor, player.state, last_action)

    def _act(self, executor: PlanExecutor, state: State, last_action: Tensor | None) -> np.ndarray:
        planned = executor.needs_plan
        action = executor.act(state, self.goal.latents, last_action)[0].numpy()
        if planned and self.draw_plans and self.player.world.has_decoder:
            assert executor.plans is not None
            frame = self._draw(state, executor.plans)
            if executor is self.executor:  # no reset came in between
                self.plan_frame = frame
        return action

    @torch.inference_mode()
    def _draw(self, state: State, plans: Tensor) -> np.ndarray:
        world = self.player.world
        end = world.rollout(state, plans.to(world.device))
        return world.decode(end)[0].permute(1, 2, 0).cpu().numpy()
