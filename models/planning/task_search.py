"""The search that solves a task: what evaluation and play have in common."""

from __future__ import annotations

from models.planning.planner import PlannerConfig

TASK_PLANNER = PlannerConfig(
    num_samples=128,
    num_elites=12,
    horizon=10,
    prior_noise_std=0.3,
    running_weight=0.5,
)
"""Chosen on seeds from 200000 of the task protocol."""
TASK_RECEDING_HORIZON = 5
"""Actions of a plan that are executed before replanning."""
TASK_PATIENCE = 8
"""Plans in a row without progress until the search widens."""


def blocks_differ(task_cost: int, goal_policy: int) -> str:
    """Say why a goal policy is no prior of the search: their action blocks have other lengths."""
    return (
        f"the task cost asks about blocks of {task_cost} actions, and the goal policy has blocks "
        f"of {goal_policy}; train both with one --task-cost.action-block and "
        f"--goal-policy.action-block"
    )


def check_task_search(planner: PlannerConfig, receding_horizon: int) -> None:
    """Raise ValueError where more of a plan would be executed than it has."""
    plan_length = planner.horizon * planner.action_block
    if receding_horizon > plan_length:
        raise ValueError(
            f"--task-receding-horizon {receding_horizon} is longer than a plan of {plan_length} "
            f"actions; give {plan_length} at most, or a longer --task-planner.horizon"
        )
