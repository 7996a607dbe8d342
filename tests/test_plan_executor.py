"""When plans are made, and which of their actions are executed."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from models.dynamics.dynamics import State
from models.planning.plan import Plan
from models.planning.plan_executor import PlanExecutor

STATE = cast(State, object())
GOALS = torch.zeros(3, 1, 2)


class CountingPlanner:
    """Numbers its actions from 100 times the plan on; a warm start sets how many there are."""

    def __init__(self, horizon: int, action_block: int, dtype: torch.dtype = torch.float32) -> None:
        self.horizon, self.action_block, self.dtype = horizon, action_block, dtype
        self.calls: list[tuple[int, int]] = []  # rows, knots of the warm start

    def reset(self) -> None: ...

    def plan(
        self,
        state: State,
        goal: Tensor,
        last_action: Any,
        warm_start: Tensor | None = None,
        stalls: Tensor | None = None,
    ) -> Plan:
        self.calls.append((len(goal), 0 if warm_start is None else warm_start.shape[1]))
        blocks = self.horizon if warm_start is None else warm_start.shape[1] - 1
        steps = 100 * len(self.calls) + torch.arange(blocks * self.action_block)
        actions = steps.to(self.dtype).expand(len(goal), -1)
        return Plan(actions, torch.zeros(len(goal), blocks + 1, 1), torch.zeros(len(goal)))


def execute(executor: PlanExecutor, steps: int) -> list[int]:
    return [int(executor.act(STATE, GOALS, None)[0]) for _ in range(steps)]


def test_whole_plans_follow_each_other() -> None:
    planner = CountingPlanner(2, 2)
    assert execute(PlanExecutor(planner), 6) == [100, 101, 102, 103, 200, 201]
    assert planner.calls == [(3, 0), (3, 0)]


def test_the_rest_of_a_plan_is_replanned_until_it_ends() -> None:
    planner = CountingPlanner(3, 2)
    executed = execute(PlanExecutor(planner, 2), 8)
    assert executed == [100, 101, 200, 201, 300, 301, 400, 401]
    assert planner.calls == [(3, 0), (3, 3), (3, 2), (3, 0)]


def test_a_reset_forgets_the_plan() -> None:
    executor = PlanExecutor(CountingPlanner(2, 2), 2)
    execute(executor, 1)
    assert not executor.needs_plan
    executor.reset()
    assert executor.needs_plan and execute(executor, 1) == [200]


def test_codes_stay_integers_and_unplanned_worlds_get_zeros() -> None:
    executor = PlanExecutor(CountingPlanner(1, 1, torch.int64))
    action = executor.act(STATE, GOALS, None, torch.tensor([0, 2]))
    assert action.dtype == torch.int64 and action.tolist() == [100, 0, 100]
