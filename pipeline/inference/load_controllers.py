"""From a run folder to its controllers, ready for use."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import cast

from models.controllers.canonical_policy import CanonicalPolicy
from models.controllers.controller import Controller
from models.controllers.discrete_goal_policy import DiscreteGoalPolicy
from models.controllers.distilled_policy import DistilledPolicy
from models.controllers.flow_policy import FlowPolicy
from models.controllers.goal_policy import GoalPolicy
from models.controllers.task_cost import TaskCost
from models.planning.best_of_n import Proposer
from models.registry import DataSpec, build_controller
from models.world import World
from pipeline import checkpoint as ckpt
from pipeline.inference.load_tokenizer import for_inference
from pipeline.lineage import check_parent

PROPOSERS = ("flow_policy", "canonical_policy", "distilled_policy")
"""Policies of chunks; of several the first one proposes where none is named."""


def load_controllers(run: Path, world: World) -> dict[str, Controller]:
    """Return the controllers of a run by name: `bc`, and `actor_critic`, which started from it.

    Those that were trained, and no others.
    """
    controllers: dict[str, Controller] = {}
    for name, folder in (("bc", "bc"), ("actor_critic", ".")):
        path = run / "controller" / folder / "best.pt"
        if path.exists():
            controllers[name] = _load_controller(path, run, world)
    return controllers


def load_goal_policy(run: Path, world: World) -> GoalPolicy | DiscreteGoalPolicy | None:
    """Return the goal policy of a run; None where none was trained."""
    return cast("GoalPolicy | DiscreteGoalPolicy | None", _load_method("goal_policy", run, world))


def load_task_cost(run: Path, world: World) -> TaskCost | None:
    """Return what the task of a run costs; None where that was not learned."""
    return cast("TaskCost | None", _load_method("task_cost", run, world))


def load_flow_policy(run: Path, world: World) -> FlowPolicy | None:
    """Return the imitator of a run in chunks of actions; None where none was trained."""
    return cast("FlowPolicy | None", _load_method("flow_policy", run, world))


def load_canonical_policy(run: Path, world: World) -> CanonicalPolicy | None:
    """Return the imitator of a run that sees all from its goal; None where none was trained, or
    what it reads states with is not there."""
    found = cast("CanonicalPolicy | None", _load_method("canonical_policy", run, world))
    return None if found is None else _with_reader(found, run, world)


def load_distilled_policy(run: Path, world: World) -> FlowPolicy | None:
    """Return the policy of a run that was distilled from a search; None where none was trained, or
    what it reads states with is not there."""
    found = cast("DistilledPolicy | None", _load_method("distilled_policy", run, world))
    policy = None if found is None else found.policy
    return _with_reader(policy, run, world) if isinstance(policy, CanonicalPolicy) else policy


def pick_proposer(
    planners: Mapping[str, object], wanted: Proposer, other_goal: bool
) -> tuple[str, FlowPolicy] | None:
    """Give the policy of chunks, and its name, that a choice in imagination is proposed by; None
    where none was trained.

    planners: by name, those that a run has.  other_goal: than the one of its demonstrations, which
    only a canonical policy knows, or its student.
    """
    names = PROPOSERS if wanted == "auto" else (wanted,)
    found = [(name, planners.get(name)) for name in names]
    policies = [(name, policy) for name, policy in found if isinstance(policy, FlowPolicy)]
    if other_goal:
        policies.sort(key=lambda named: not isinstance(named[1], CanonicalPolicy))
    return next(iter(policies), None)


def load_controller(run: Path, world: World) -> Controller:
    """Return the `actor_critic` of a run, or its clone `bc`, after a line that says so.

    ValueError says which command trains one.
    """
    controllers = load_controllers(run, world)
    if "actor_critic" in controllers:
        return controllers["actor_critic"]
    if "bc" in controllers:
        print(f"{run / 'controller'} holds no actor-critic; the behavior cloning (bc) acts")
        return controllers["bc"]
    raise ValueError(
        f"{run / 'controller'} holds no controller; "
        f"{ckpt.train_command('controller', run / 'controller' / 'best.pt')} trains one"
    )


def _with_reader(policy: CanonicalPolicy, run: Path, world: World) -> CanonicalPolicy | None:
    """Let it read states with the run's task cost; None where there is none."""
    reader = load_task_cost(run, world)
    if reader is None:
        return None
    policy.read_with(reader)
    return policy


def _load_method(name: str, run: Path, world: World) -> Controller | None:
    path = run / "controller" / name / "best.pt"
    return _load_controller(path, run, world) if path.exists() else None


def _load_controller(path: Path, run: Path, world: World) -> Controller:
    checkpoint = ckpt.load(path, "controller")
    parent_path = run / "dynamics" / "best.pt"
    check_parent(checkpoint, path, ckpt.load(parent_path, "dynamics"), parent_path)
    actions = ckpt.action_spec(checkpoint, "actions", path)
    world.actions.check_same(actions, "the world", str(path))
    data = DataSpec(world.image_size, world.actions, world.state_spec)
    controller = ckpt.build(build_controller, checkpoint, path, data)
    return cast(Controller, for_inference(controller, world.device))
