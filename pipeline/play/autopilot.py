"""Lets a planner play in the window, towards the run's goal or an image frozen by a key.

A search takes longer than a step, so it runs in a thread, and the world waits for it: the window
keeps answering.  A CUDA graph is captured and replayed where the window is drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor

import numpy as np

from pipeline.play.goal_actor import GoalActor
from pipeline.play.goals import Goal
from pipeline.play.player import Player, Start


class Autopilot:
    """Acts while it is `active`."""

    def __init__(
        self,
        player: Player,
        find_goal: Callable[[Start], Goal],
        make_actor: Callable[[Goal], GoalActor],
        threaded: bool = True,
        executor: Executor | None = None,
    ) -> None:
        """find_goal: for a start, where none is frozen.  make_actor: for a goal.  Both may raise
        ValueError, which says what is missing.  executor: a thread that several share."""
        self.player, self.find_goal, self.make_actor = player, find_goal, make_actor
        self.active = False
        self.lacks_goal = False
        """Whether it could not take over for want of a goal, which `freeze` gives."""
        self.frozen: Goal | None = None
        self.actor: GoalActor | None = None
        self._goal: Goal | None = None  # the run's, once it was found
        own = executor or ThreadPoolExecutor(1, "planner")  # begins with its first plan
        self._thread = own if threaded else None
        self._next: Future[np.ndarray] | None = None

    def toggle(self) -> str:
        """Take over, or hand back; return what is missing, if anything."""
        self._drop()
        if self.active:
            self.active = False
            return ""
        return self._begin()

    def freeze(self) -> str:
        """Make the world's present image the goal, or forget it; return what is missing."""
        if self.frozen is None:
            state, image = self.player.state, self.player.model_frame
            self.frozen = Goal("the frozen image", state.latents.clone()[None], image)
        else:
            self.frozen = None
        self._drop()
        return self._begin() if self.active else ""

    def reset(self) -> None:
        """Follow the player to another start."""
        self._drop()
        if self._goal is not None and (self._goal.has_time or self._goal.pose is not None):
            self._goal = None
        if self.active:
            self._begin()

    def think(self) -> None:
        """Begin to plan, if a plan is needed."""
        if self.active and self.actor is not None and self._next is None:
            decide = self.actor.prepare()
            if self._thread is None or not self.actor.needs_plan:
                self._next = Future()
                self._next.set_result(decide())
            else:
                self._next = self._thread.submit(decide)

    def next_action(self) -> np.ndarray | None:
        """Return the next action, (A,) or (); None while it is planned."""
        self.think()
        if self._next is None or not self._next.done():
            return None
        action, self._next = self._next.result(), None
        return action

    def wait(self) -> None:
        """Wait for the plan that is being made."""
        if self._next is not None:
            self._next.exception()

    @property
    def plan_frame(self) -> np.ndarray | None:
        """(H, W, 3) uint8, what the plan ends in, as it was imagined."""
        return self.actor.plan_frame if self.active and self.actor is not None else None

    def describe(self) -> str:
        """Say who acts, towards what, and how long a plan takes."""
        if not self.active or self.actor is None:
            return "goal: the frozen image" if self.frozen is not None else ""
        parts = [f"planner: towards {self.actor.goal.name}"]
        if self.actor.plan_seconds is not None:
            parts.append(f"a plan takes {self.actor.plan_seconds:.2f} s")
        if self._next is not None and not self._next.done():
            parts.append("planning")
        return "  ".join(parts)

    def _begin(self) -> str:
        self.active = self.lacks_goal = False
        try:
            if self.frozen is None and self._goal is None:
                self._goal = self.find_goal(self.player.start)
        except ValueError as problem:
            self.lacks_goal = True
            return str(problem)
        goal = self.frozen or self._goal
        assert goal is not None
        try:
            if self.actor is None or self.actor.goal.objective is not goal.objective:
                self.actor = None
            if self.actor is None or _kind(self.actor.goal) != _kind(goal):
                self.actor = self.make_actor(goal)
            self.actor.reset(goal)
        except ValueError as problem:
            self.actor = None
            return str(problem)
        self.active = True
        return ""

    def _drop(self) -> None:
        """Forget the action that is being planned; its thread ends by itself."""
        self._next = None


def _kind(goal: Goal) -> tuple[bool, bool]:
    """What decides how a goal is planned towards, beside its objective."""
    return goal.has_time, goal.pose is not None
