"""What plans towards a goal: a planner, the goal policy, or a planner with it as its prior."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from data.io.messages import command
from models.controllers.discrete_goal_policy import DiscreteGoalPolicy
from models.controllers.flow_policy import FlowPolicy
from models.controllers.goal_policy import GoalPolicy
from models.planning.best_of_n import BestOfN, BestOfNConfig, Proposer
from models.planning.code_planner import CodePlanner, CodePlannerConfig, can_search_codes
from models.planning.goal_set import GoalsInTurn
from models.planning.plan_executor import PlanExecutor
from models.planning.planner import Planner, PlannerConfig, can_plan
from models.planning.task_search import blocks_differ
from models.world import World
from pipeline.cuda_graph import CudaGraphed
from pipeline.inference.load_controllers import (
    load_canonical_policy,
    load_distilled_policy,
    load_flow_policy,
    load_goal_policy,
    pick_proposer,
)
from pipeline.play.goals import Goal

GoalSource = Literal["planner", "goal_policy", "policy_prior", "best_of_n"]
MakeExecutor = Callable[[], PlanExecutor]
"""Gives one with nothing planned yet."""


@dataclass(frozen=True)
class GoalSettings:
    """How a goal is planned towards."""

    planner: PlannerConfig
    """Search for whole plans towards a goal that has a time."""
    goal_offset: int
    """Steps to that goal; with a policy prior a plan is that long."""
    task_planner: PlannerConfig
    """Search towards the task, and towards images."""
    task_receding_horizon: int
    """Steps that are executed of such a plan; rounded up to whole action blocks."""
    task_patience: int
    """Such plans in a row without progress that widen the search."""
    best_of_n: BestOfNConfig = field(default_factory=BestOfNConfig)
    """Choice among the chunks of the task's imitator."""
    cuda_graph: bool = False
    code_planner: CodePlannerConfig = field(default_factory=CodePlannerConfig)
    """Search where actions are few codes, such as latent ones."""


def make_executor(
    source: GoalSource, run: Path, world: World, goal: Goal, settings: GoalSettings
) -> MakeExecutor:
    """ValueError where the world cannot be planned in, or a goal policy is missing."""
    if goal.pose is not None and source in ("goal_policy", "policy_prior"):
        raise ValueError(
            f"--actions {source} is given images of a goal, and episodes of this run have goals of "
            f"their own, known by pose; give --actions best_of_n or planner"
        )
    if source == "goal_policy":
        policy = require_goal_policy(run, world)
        if goal.has_time:
            return lambda: PlanExecutor(policy)
        plans_per_goal = -(-settings.goal_offset // policy.action_block)
        return lambda: PlanExecutor(GoalsInTurn(policy, plans_per_goal))
    if source == "planner" and can_search_codes(world):
        return make_code_executor(world, goal, settings)
    if not can_plan(world):
        raise ValueError(
            f"--actions {source}: planning needs a world of continuous latents and continuous "
            f"actions, and this one has {world.state_spec.kind} latents and {world.actions.kind} "
            f"actions; --actions dataset, random and actor_critic work in any world"
        )
    if source == "best_of_n":
        chooser = make_best_of_n(run, world, goal, settings.best_of_n)
        steps = chooser.policy.config.receding_horizon
        return lambda: PlanExecutor(chooser, steps, settings.task_patience)
    config = settings.planner if goal.has_time else settings.task_planner
    block, policy_prior = goal.action_block or config.action_block, None
    if source == "policy_prior":
        policy_prior = require_goal_policy(run, world)
        block = policy_prior.action_block
        if goal.action_block not in (None, block):
            raise ValueError(blocks_differ(goal.action_block, block))
    if policy_prior is not None and goal.has_time:
        config = config.with_action_block(block, settings.goal_offset)
    else:
        config = config.with_action_block(block, config.horizon * config.action_block)
    capture = partial(CudaGraphed, device=world.device) if settings.cuda_graph else None
    planner = Planner(config, world, capture, policy_prior, goal.objective)
    if goal.has_time:
        return lambda: PlanExecutor(planner)
    # whole blocks, of a plan whose blocks may be shorter than the settings'
    steps = min(-(-settings.task_receding_horizon // block) * block, config.horizon * block)
    return lambda: PlanExecutor(planner, steps, settings.task_patience)


def make_code_executor(world: World, goal: Goal, settings: GoalSettings) -> MakeExecutor:
    """Search over codes: whole plans to a goal that has a time, else replanned."""
    planner = CodePlanner(settings.code_planner, world, goal.objective)
    if goal.has_time:
        return lambda: PlanExecutor(planner)
    block = planner.action_block
    steps = min(-(-settings.task_receding_horizon // block), planner.horizon) * block
    return lambda: PlanExecutor(planner, steps, settings.task_patience)


def make_best_of_n(run: Path, world: World, goal: Goal, config: BestOfNConfig) -> BestOfN:
    """ValueError where the goal is not the task, or the task's imitator is missing."""
    if not goal.is_task or goal.objective is None or goal.action_block is None:
        raise ValueError(
            f"--actions best_of_n chooses among what an imitator of the task would do, and the "
            f"goal is {goal.name}; give --goal task, or --actions policy_prior"
        )
    picked = load_proposer(run, world, goal, config.proposer)
    if picked is None:
        by_default = "flow_policy" if goal.pose is None else "canonical_policy"
        method = by_default if config.proposer == "auto" else config.proposer
        folder, name = run / "controller" / method, method.replace("_", " ")
        train = command("train_controller.py", "--run", run, "--methods", method)
        raise ValueError(f"{folder} holds no {name}; {train} trains one")
    return BestOfN(config, world, picked, goal.objective, goal.action_block)


def load_proposer(run: Path, world: World, goal: Goal, wanted: Proposer) -> FlowPolicy | None:
    """Return the policy whose chunks are compared; None where the run has none."""
    planners = {
        "flow_policy": load_flow_policy(run, world),
        "canonical_policy": load_canonical_policy(run, world),
        "distilled_policy": load_distilled_policy(run, world),
    }
    picked = pick_proposer(planners, wanted, goal.pose is not None)
    return None if picked is None else picked[1]


def best_source(run: Path, world: World, goal: Goal) -> GoalSource:
    """Return what of a run reaches goals best."""
    if not can_plan(world):
        codes = load_goal_policy(run, world) is None and can_search_codes(world)
        return "planner" if codes else "goal_policy"
    if goal.is_task and goal.action_block is not None:
        proposer = load_proposer(run, world, goal, "auto")
        if proposer is not None and proposer.horizon >= goal.action_block:
            return "best_of_n"
    if goal.pose is not None:
        return "planner"
    return "planner" if load_goal_policy(run, world) is None else "policy_prior"


def require_goal_policy(run: Path, world: World) -> GoalPolicy | DiscreteGoalPolicy:
    """Load the goal policy of a run; ValueError says how to get one, if the world allows one."""
    policy = load_goal_policy(run, world)
    if policy is None:
        folder = run / "controller" / "goal_policy"
        raise ValueError(f"{folder} holds no goal policy; {_advice(run, world)}")
    return policy


def _advice(run: Path, world: World) -> str:
    train, actions = command("train_controller.py", "--run", run), world.actions
    if actions.factors:
        return f"{train} --preset minecraft trains one"
    if actions.kind == "discrete":
        return "none can be trained for discrete actions without factors; give other --actions"
    if world.latents.kind == "discrete":
        return (
            "none can be trained in a world of discrete latents, but in one of continuous latents "
            "(--preset keypoints); give other --actions"
        )
    return f"{train} --methods bc goal_policy trains one, and --actions planner needs none"
