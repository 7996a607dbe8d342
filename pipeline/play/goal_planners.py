"""What acts towards a goal: a planner, the goal policy, or a planner with it as its prior."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from data.actions import as_tensor
from data.io.messages import command
from models.controllers.discrete_goal_policy import DiscreteGoalPolicy
from models.controllers.goal_policy import GoalPolicy
from models.controllers.plan import GoalPlanner
from models.controllers.plan_executor import PlanExecutor
from models.controllers.planner import Planner, PlannerConfig, can_plan
from models.world import World
from pipeline.cuda_graph import CudaGraphed
from pipeline.inference.load_controllers import load_goal_policy
from pipeline.play.headless import Actor
from pipeline.play.player import Player

GoalSource = Literal["planner", "goal_policy", "policy_prior"]


def make_goal_planner(
    source: GoalSource,
    run: Path,
    world: World,
    config: PlannerConfig,
    goal_offset: int,
    cuda_graph: bool = False,
) -> GoalPlanner:
    """goal_offset: steps to the goal; with a policy prior a plan is that long.

    ValueError where the world cannot be planned in, or a goal policy is missing.
    """
    if source != "goal_policy" and not can_plan(world):
        raise ValueError(
            f"--actions {source}: planning needs a world of continuous latents and continuous "
            f"actions, and this one has {world.state_spec.kind} latents and {world.actions.kind} "
            f"actions; --actions dataset, random and actor_critic work in any world"
        )
    if source == "goal_policy":
        return require_goal_policy(run, world)
    policy_prior = None
    if source == "policy_prior":
        policy_prior = require_goal_policy(run, world)
        config = config.with_action_block(policy_prior.action_block, goal_offset)
    capture = partial(CudaGraphed, device=world.device) if cuda_graph else None
    return Planner(config, world, capture, policy_prior)


def act_towards(player: Player, planner: GoalPlanner, goal: np.ndarray) -> Actor:
    """Return an actor that executes whole plans towards an image, (H, W, 3) uint8, from where the
    model rollout stands."""
    executor = PlanExecutor(planner)
    image = torch.from_numpy(np.ascontiguousarray(goal)).permute(2, 0, 1)
    goal_latents = player.world.embed(image[None])

    def act(step: int) -> np.ndarray:
        past_actions = player.actions or list(player.start.actions)
        last_action = as_tensor(past_actions[-1][None]) if past_actions else None
        return executor.act(player.state, goal_latents, last_action)[0].numpy()

    return act


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
