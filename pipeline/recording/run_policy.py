"""The controller of a run as the policy that acts while episodes are recorded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from data.gym.env_group import EnvGroup
from data.gym.pixel_env import StepResult
from models.action_map import ActionMap
from models.controllers.controller import Controller
from models.world import World
from pipeline import checkpoint as ckpt
from pipeline.inference.load_controllers import load_controllers
from pipeline.inference.load_world import load_world
from pipeline.inference.world_actor import WorldActor

BEST_FIRST = ("actor_critic", "bc")


@dataclass(frozen=True)
class RunChoice:
    """The actor-critic of a run, or its clone where there is none."""

    run: str
    fingerprint: str
    """Of the controller's checkpoint: another one is another policy."""

    @property
    def name(self) -> str:
        return self.run

    @staticmethod
    def find(run: Path) -> RunChoice:
        """Choose the controller of a run; ValueError says which command trains one."""
        for folder in (".", "bc"):
            path = run / "controller" / folder / "best.pt"
            if path.exists():
                return RunChoice(str(run), ckpt.load(path, "controller")["fingerprint"])
        path = run / "controller" / "best.pt"
        raise ValueError(
            f"--policy {run} has no controller; {ckpt.train_command('controller', path)} trains one"
        )

    def open(self, envs: EnvGroup) -> RunPolicy:
        run = Path(self.run)
        world = load_world(run)
        controllers = load_controllers(run, world)
        name = next(name for name in BEST_FIRST if name in controllers)
        world.actions.check_same(envs.actions, f"--policy {run}", "the environment")
        return RunPolicy(world, controllers[name])


class RunPolicy:
    """A controller that observes frames through its world."""

    def __init__(
        self, world: World, controller: Controller, action_map: ActionMap | None = None
    ) -> None:
        """action_map: from the world's latent actions to the environment's."""
        self.actor, self.action_map = WorldActor(world, controller), action_map

    def reset(self, results: Sequence[StepResult], seeds: Sequence[int]) -> None:
        frames = _stack(results)
        if frames.shape[2:] != tuple(self.actor.world.image_size):
            raise ValueError(
                f"the controller's world has frames of {tuple(self.actor.world.image_size)} "
                f"pixels, and the recording of {frames.shape[2:]}; give --resolution "
                f"{self.actor.world.image_size[0]}"
            )
        self.actor.reset(frames, np.ones(len(frames), bool), seeds[0])

    def act(self, results: Sequence[StepResult], active: np.ndarray) -> np.ndarray:
        actions = self.actor.act(_stack(results), active)
        if self.action_map is None:
            return actions
        return self.action_map.to_true(torch.from_numpy(actions)).numpy()


def _stack(results: Sequence[StepResult]) -> np.ndarray:
    """(n, 3, H, W) uint8."""
    return np.ascontiguousarray(np.stack([r.frame for r in results]).transpose(0, 3, 1, 2))
