"""What docs/make/shape_figures.py draws of each controller, in a world of keypoints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from data.pusht.simulator import ACTIONS, STATE_NAMES
from data.pusht.task_goal import TASK_GOAL
from data.vpt.vpt_actions import CameraQuantizer, action_spec
from drawing import BLUE, GREEN, INK, ORANGE, Flow, Node, Via
from models import registry
from models.registry import DataSpec
from shape_figures import ROWS, actions, tokenizer, trace

A = "(B, 2)"


def _built(name: str, **changes: Any) -> tuple[Any, str]:
    """A controller over keypoints, and the shape of its world's latents."""
    latents = tokenizer("keypoints cpu").latents
    config = replace(registry.default_config(name), **changes)
    model = registry.build_controller(config, DataSpec((64, 64), ACTIONS, latents))
    return model, f"(B, 1, {latents.dim})"


def policy() -> Flow:
    model, shape = _built("policy")
    t, _ = trace(model, ["head"], lambda: model.distribution(torch.randn(ROWS, 1, 64)))
    modes = model.config.num_modes
    return Flow(
        "Behavior cloning: a state to a distribution over actions",
        [Node("state's latents", shape, ORANGE),
         Node("weights, means, deviations", t.shape("head")),
         Node(f"mixture of {modes} Gaussians", "over " + A), Node("action", A, GREEN)],
        [Via(f"network, {t.weights('encoder', 'head')}"), Via("numbers of"), Via("drawn")],
        notes=["The loss: how unlikely the recorded action is."],
    )  # fmt: skip


def actor_critic() -> Flow:
    return _actor_critic("actor_critic", "REINFORCE, with the mean over starts taken off.")


def dreamer() -> Flow:
    return _actor_critic("dreamer", "DreamerV3's advantage: (R - v) / max(1, S).")


def _actor_critic(name: str, note: str) -> Flow:
    model, shape = _built(name)
    t, _ = trace(model, [], lambda: None)
    return Flow(
        "Actor-critic: acts in imagination, and learns from imagined rewards",
        [Node("state's latents", shape, ORANGE), Node("action", A, GREEN),
         Node("next state, reward", f"{shape}, (B,)", ORANGE),
         Node("lambda returns", f"(B, {model.config.horizon})")],
        [Via(f"actor, {t.weights('policy')}"), Via("world"),
         Via(f"{model.config.horizon} steps", f"critic's values, {t.weights('critic')}", BLUE)],
        again=(2, 0, "Dashed: the next imagined step."), notes=[note],
    )  # fmt: skip


def goal_policy() -> Flow:
    model, shape = _built("goal_policy")
    latents = torch.randn(ROWS, 1, 64)
    t, found = trace(model, ["net"], lambda: model(latents, latents, actions()))
    config = model.config
    return Flow(
        "Goal policy: state and goal to an action, trained by gradients through the world",
        [(Node("goal's latents", shape, GREEN), Node("state's latents", shape, ORANGE)),
         Node("last action of a block", t.shape(found), GREEN),
         Node("state a block later", shape, ORANGE), Node("distance to the goal", "(B,)")],
        [Via(f"network, {t.weights('net')}, with the last action"),
         Via("world", f"{config.action_block} actions, interpolated"),
         Via(f"after {config.horizon} blocks")],
        again=(2, 0, "Dashed: the next block."), notes=["The gradient goes the whole way back."],
    )  # fmt: skip


def discrete_goal_policy() -> Flow:
    keys = action_spec(CameraQuantizer())
    latents = tokenizer("minecraft debug").latents
    config = registry.default_config("discrete_goal_policy")
    model = registry.build_controller(config, DataSpec((64, 64), keys, latents))
    shape = f"(B, {latents.tokens_per_frame}) codes"
    t, _ = trace(model, [], lambda: None)
    return Flow(
        "Goal policy over codes: rollouts are sampled, and the better ones become likelier",
        [(Node("goal's codes", shape, GREEN), Node("state's codes", shape, ORANGE)),
         Node("logits of all factors", f"(B, {sum(keys.factor_sizes)})"),
         Node("action", f"a code of {len(keys.factor_sizes)} factors", GREEN),
         Node("distance after " + f"{config.goal_offset} steps", "(B,)")],
        [Via(f"network, {t.weights('encoder', 'head')}"), Via("drawn"),
         Via("world", f"{config.num_samples} rollouts", INK)],
        again=(2, 0, "Dashed: the next step of a rollout."),
        notes=["Rollouts that end nearer than their siblings count."],
    )  # fmt: skip


def flow_policy() -> Flow:
    model, shape = _built("flow_policy")
    return _flow(model, shape, "Flow policy: noise becomes a chunk of actions",
                 "The loss: the velocity from noise to a demonstrated chunk.")  # fmt: skip


def distilled_policy() -> Flow:
    model, shape = _built("distilled_policy")
    return _flow(model.policy, shape, "Distilled policy: answers at once as a search would",
                 "It learns chunks that best of n chose in imagination.")  # fmt: skip


def _flow(model: Any, shape: str, title: str, note: str) -> Flow:
    noise = torch.randn(ROWS, model.horizon, 2)
    t, chunk = trace(model, ["net"], lambda: model.sample(torch.randn(ROWS, 1, 64), noise))
    return Flow(
        title,
        [(Node("state's latents", shape, ORANGE), Node("noise", t.shape(noise), INK)),
         Node("velocity", t.shape("net")), Node("chunk of actions", t.shape(chunk), GREEN)],
        [Via(f"network, {t.weights('net')}"), Via("added", f"{model.config.num_steps} Euler steps",
                                                  INK)],
        again=(2, 0, "Dashed: the next Euler step."),
        notes=[note, f"{model.config.receding_horizon} of {model.horizon} actions are executed."],
    )  # fmt: skip


def canonical_policy() -> Flow:
    model, shape = _built("canonical_policy", state_names=STATE_NAMES, goal=TASK_GOAL)
    t, _ = trace(model, [], lambda: None)
    chunk = f"(B, {model.horizon}, 2)"
    return Flow(
        "Canonical policy: state and actions as they are seen from the goal",
        [(Node("state's latents", shape, ORANGE), Node("goal: x, y, angle", "(B, 3)", GREEN)),
         Node("seen from the goal", f"(B, {model.encoder.out_dim})"),
         Node("chunk, as seen from there", chunk), Node("chunk of actions", chunk, GREEN)],
        [Via("state read by the task's cost, turned and shifted"),
         Via(f"flow, {t.weights('net')}", f"noise {chunk}", INK), Via("turned back")],
        notes=["One demonstration shows every goal; only walls stay."],
    )  # fmt: skip


def task_cost() -> Flow:
    model, shape = _built("task_cost", state_names=STATE_NAMES, goal=TASK_GOAL)
    t, features = trace(model, [], lambda: model.read(torch.randn(ROWS, 1, 64)))
    return Flow(
        "Task cost: latents to the cost of a state",
        [Node("latents", shape, ORANGE), Node("state, read", t.shape(features)),
         (Node("distance to the goal", "(B,)"), Node("reward near it", "(B,)")),
         Node("cost", "(B,)", GREEN)],
        [Via(f"read-out, {t.weights('readout', 'linear_readout')}"),
         Via(f"norm; reward head {t.weights('reward_head')}"), Via("sum")],
        notes=["A third network says whether actions change the state:",
               "what creeps by itself in a rollout does not count."],
    )  # fmt: skip


CONTROLLER_FLOWS: dict[str, Callable[[], Flow]] = {
    "policy": policy, "actor_critic": actor_critic, "dreamer": dreamer,
    "goal_policy": goal_policy, "discrete_goal_policy": discrete_goal_policy,
    "flow_policy": flow_policy, "distilled_policy": distilled_policy,
    "canonical_policy": canonical_policy, "task_cost": task_cost,
}  # fmt: skip
