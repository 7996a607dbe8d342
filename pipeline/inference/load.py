"""From a run folder to the models in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from models.controllers.discrete_goal_policy import DiscreteGoalPolicy
from models.controllers.goal_policy import GoalPolicy
from models.layers.inference import cast_weights, use_column_major
from models.layers.int8 import quantize_linears
from models.registry import build_controller, build_dynamics, build_tokenizer
from models.world import World
from pipeline import checkpoint as ckpt
from pipeline.device import pick_device, pick_precision

Device = torch.device | str | None


def load_tokenizer(run: Path, device: Device = None) -> tuple[Any, ckpt.Checkpoint]:
    """Give the tokenizer of a run, without gradients, and its checkpoint."""
    checkpoint = ckpt.load(run / "tokenizer" / "best.pt", "tokenizer")
    tokenizer = build_tokenizer(checkpoint["config"], ckpt.action_spec(checkpoint))
    ckpt.restore(tokenizer, checkpoint, run / "tokenizer" / "best.pt")
    return tokenizer.to(device or pick_device()).eval().requires_grad_(False), checkpoint


def load_world(run: Path, device: Device = None, int8: bool = False) -> World:
    """Give the world of a run: its tokenizer, and the dynamics model trained on that.

    int8: hold the dynamics' weights in 8 bits; ValueError on anything but a CPU.
    """
    device = torch.device(device) if device else pick_device()
    path = run / "dynamics" / "best.pt"
    checkpoint = ckpt.load(path, "dynamics")
    tokenizer, parent = load_tokenizer(run, device)
    ckpt.check_parent(checkpoint, path, parent, run / "tokenizer" / "best.pt")
    dynamics = build_dynamics(
        checkpoint["config"], ckpt.latent_spec(checkpoint), ckpt.action_spec(checkpoint)
    )
    ckpt.restore(dynamics, checkpoint, path)
    dynamics.to(device)
    if int8:
        quantize_linears(dynamics)
    use_column_major(dynamics)
    precision = pick_precision(device, "auto")
    cast_weights(dynamics, precision)
    world = World(tokenizer, dynamics, precision)
    return world.requires_grad_(False)


def load_controllers(run: Path, world: World) -> dict[str, Any]:
    """Give the controllers of a run by name: `cloning`, the start, and `controller`, the end.

    `act(state)` of each answers in the environment's units. Empty where none was trained.
    """
    controllers = {}
    for name, folder in (("cloning", "cloning"), ("controller", ".")):
        path = run / "controller" / folder / "best.pt"
        if path.exists():
            controllers[name] = _load_controller(path, run, world)
    if "cloning" in controllers:  # cloning alone was asked for
        controllers.setdefault("controller", controllers["cloning"])
    return controllers


def load_goal_policy(run: Path, world: World) -> GoalPolicy | DiscreteGoalPolicy | None:
    """Give the controller of a run that is shown goals; None where none was trained."""
    path = run / "controller" / "goals" / "best.pt"
    return _load_controller(path, run, world) if path.exists() else None


def load_controller(run: Path, world: World) -> Any:
    """Give the controller of a run; ValueError says which command makes it."""
    controllers = load_controllers(run, world)
    if "controller" not in controllers:
        raise ValueError(
            f"{run / 'controller'} holds no controller; train_controller.py --run {run} makes it"
        )
    return controllers["controller"]


def _load_controller(path: Path, run: Path, world: World) -> Any:
    checkpoint = ckpt.load(path, "controller")
    parent_path = run / "dynamics" / "best.pt"
    ckpt.check_parent(checkpoint, path, ckpt.load(parent_path, "dynamics"), parent_path)
    world.actions.check_same(ckpt.action_spec(checkpoint), "the world", str(path))
    controller = build_controller(checkpoint["config"], world.latents, world.actions)
    ckpt.restore(controller, checkpoint, path)
    return controller.to(world.device).eval().requires_grad_(False)
