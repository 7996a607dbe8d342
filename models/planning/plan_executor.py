"""A controller that plans towards goals, and replans as plans are used up (model predictive
control).

Letters: B worlds, M of them that are planned for, E knots, T actions of a plan, A action numbers.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor

from models.dynamics.dynamics import State
from models.planning.plan import GoalPlanner

PROGRESS = 0.02
"""Share by which the cost has to fall since the last progress to count as the next one, in one plan
or over several (as the threshold of PyTorch's ReduceLROnPlateau)."""


class PlanExecutor:
    """Execute `receding_horizon` actions of a plan, then replan with the rest as a warm start.

    A replanned plan ends when the first one would have; after that a new one is made.  With a
    receding horizon as long as a plan, whole plans follow each other.  Where a goal has no time,
    as a task's, `patience` keeps plans at their full length instead, and tells the planner of each
    world in which so many plans in a row brought the goal no nearer.
    """

    def __init__(
        self,
        planner: GoalPlanner,
        receding_horizon: int | None = None,
        patience: int | None = None,
    ) -> None:
        """receding_horizon: whole action blocks; None executes whole plans."""
        length, block = planner.horizon * planner.action_block, planner.action_block
        receding_horizon = length if receding_horizon is None else receding_horizon
        if not 0 < receding_horizon <= length or receding_horizon % block:
            raise ValueError(
                f"a receding horizon of {receding_horizon} actions does not fit a plan of {length};"
                f" give --receding-horizon a multiple of the action block, {block}, up to {length}"
            )
        self.planner, self.receding_horizon = planner, receding_horizon
        self.patience = patience
        self.plan_seconds: list[float] = []
        """Of each call of the planner, per world planned in."""
        self.reset()

    def reset(self) -> None:
        """Begin new episodes: forget the plans."""
        self.planner.reset()
        self.plans: Tensor | None = None  # (B, T, A), or (B, T) codes, on the CPU
        self.next_step = self.steps_left = 0
        self.warm_start: Tensor | None = None  # (B, E, A), the rest of the plans
        self.lowest_cost: Tensor | None = None  # (B,), on the CPU, at the last progress
        self.since_progress: Tensor | None = None  # (B,), plans since

    @property
    def needs_plan(self) -> bool:
        """The next call of `act` plans."""
        return self.steps_left == 0

    @torch.no_grad()  # not inference mode: a planner may follow gradients
    def act(
        self,
        state: State | None,
        goal: Tensor | None = None,
        last_action: Tensor | None = None,
        rows: Tensor | None = None,
    ) -> Tensor:
        """Give each world's next action, (B, A) or (B,), in the environment's units, on the CPU.

        state, last_action (M, A): of the worlds that are planned for; used only where `needs_plan`.
        goal: latents to reach, (B, N) codes or (B, P, D), of all worlds.
        rows: (M,) int64, the worlds that are planned for, all if None; the others' actions are 0.
        """
        assert goal is not None, "planning needs a goal"
        if self.needs_plan:
            assert state is not None, "a plan starts from a state"
            self._plan(state, goal, last_action, rows)
        assert self.plans is not None
        action = self.plans[:, self.next_step]
        self.next_step += 1
        self.steps_left -= 1
        return action

    def _plan(
        self, state: State, goal_latents: Tensor, last_action: Tensor | None, rows: Tensor | None
    ) -> None:
        device, num_worlds = goal_latents.device, len(goal_latents)
        rows = torch.arange(num_worlds) if rows is None else rows.cpu()
        device_rows = rows.to(device)
        warm_start = None if self.warm_start is None else self.warm_start[device_rows]
        start = time.perf_counter()
        stalls = None
        if self.patience is not None and self.since_progress is not None:
            stalls = self.since_progress[rows] // self.patience
        plan = self.planner.plan(state, goal_latents[device_rows], last_action, warm_start, stalls)
        self.plan_seconds.append((time.perf_counter() - start) / len(rows))
        actions = plan.actions.float() if plan.actions.is_floating_point() else plan.actions
        self.plans = torch.zeros(num_worlds, *actions.shape[1:], dtype=actions.dtype)
        self.plans[rows] = actions.cpu()
        self.next_step, self.steps_left = 0, min(self.receding_horizon, actions.shape[1])
        if self.patience is not None and plan.start_cost is not None:
            self._note_progress(plan.start_cost.float().cpu(), rows, num_worlds)
        executed = self.receding_horizon // self.planner.action_block
        rest = plan.knots[:, executed:]
        if self.patience is not None:
            rest = torch.cat([rest, rest[:, -1:].expand(-1, executed, -1)], dim=1)
        self.warm_start = None
        if rest.shape[1] > 1:
            self.warm_start = rest.new_zeros(num_worlds, *rest.shape[1:])
            self.warm_start[device_rows] = rest

    def _note_progress(self, cost: Tensor, rows: Tensor, num_worlds: int) -> None:
        """Count the plans since the cost, (M,), of the worlds at `rows` fell."""
        if self.lowest_cost is None or self.since_progress is None:
            self.lowest_cost = torch.full((num_worlds,), torch.inf)
            self.since_progress = torch.zeros(num_worlds, dtype=torch.int64)
        lower = cost < (1 - PROGRESS) * self.lowest_cost[rows]
        self.since_progress[rows] = torch.where(lower, 0, self.since_progress[rows] + 1)
        # not with every small fall, or many of them would never add up to progress
        self.lowest_cost[rows] = torch.where(lower, cost, self.lowest_cost[rows])
