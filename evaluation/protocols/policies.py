"""Policies to stand beside a controller, all of one shape, for N simulators at a time.

Letters: N simulators, S numbers of a simulator state, A numbers of an action.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from data.pusht.scripted_policy import ScriptedPolicy


@dataclass
class Observation:
    """What N simulators show after a step. Only the baselines that say so look at `states`."""

    frames: np.ndarray | None  # (N, 3, H, W) uint8; None for policies that do not look at frames
    states: np.ndarray  # (N, S)
    velocities: np.ndarray  # (N, 2) of the agent, units of the world a second
    active: np.ndarray  # (N,) bool, False where the episode is over and the action is not used


class Policy(Protocol):
    """Decides what N simulators do next; a planner of any kind fits in."""

    needs_pixels: bool
    """It needs frames."""

    def reset(self, obs: Observation, goal: Observation | None) -> None:
        """Start N episodes, towards N goals where the protocol has them."""
        ...

    def act(self, obs: Observation) -> np.ndarray:
        """Give actions (N, A) in the environment's units; the first view is that of `begin`."""
        ...


class Random:
    """Uniform actions, whatever is seen."""

    needs_pixels = False

    def __init__(self, actions: Any, seed: int = 0):
        self.actions = actions
        self.seed = seed

    def reset(self, obs: Observation, goal: Observation | None) -> None:
        self.rng = np.random.default_rng(self.seed)

    def act(self, obs: Observation) -> np.ndarray:
        return self.actions.sample(len(obs.states), self.rng)


class NoOp:
    """Stays where it began. Reads the agent's place, the first two numbers of the state."""

    needs_pixels = False

    def reset(self, obs: Observation, goal: Observation | None) -> None:
        self.position = obs.states[:, :2].copy()

    def act(self, obs: Observation) -> np.ndarray:
        return self.position


class GoalAgentPosition:
    """Goes to where the goal shows the agent, and leaves the block to chance. Reads states."""

    needs_pixels = False

    def reset(self, obs: Observation, goal: Observation | None) -> None:
        assert goal is not None, "only goal protocols have a goal"
        self.position = goal.states[:, :2].copy()

    def act(self, obs: Observation) -> np.ndarray:
        return self.position


class Scripted:
    """The pusher that records episodes (data/pusht/scripted_policy.py), to the task's goal; it sees states."""

    needs_pixels = False

    def reset(self, obs: Observation, goal: Observation | None) -> None:
        self.policy = ScriptedPolicy()

    def act(self, obs: Observation) -> np.ndarray:
        return np.stack([self.policy.act(state) for state in obs.states])


class WorldModelPolicy:
    """A trained controller: frames become the world's latent state, which is all that it sees.

    It is not told a goal: controllers of this project are trained for the task's own.
    """

    needs_pixels = True

    def __init__(self, world: Any, controller: Any, seed: int = 0):
        self.seed = seed
        self.world = world
        self.controller = controller

    @torch.inference_mode()
    def reset(self, obs: Observation, goal: Observation | None) -> None:
        torch.manual_seed(self.seed)  # controllers draw their actions
        self.active_rows = np.flatnonzero(obs.active)  # the simulators that the state still follows
        frames = self._frames(obs)
        spec = self.world.actions
        dtype = torch.float32 if spec.kind == "continuous" else torch.int64
        no_actions = torch.zeros(len(frames), 0, *spec.shape, dtype=dtype, device=frames.device)
        self.state = self.world.reset(frames[:, None], no_actions)
        self.last_action: Tensor | None = None

    @torch.inference_mode()
    def act(self, obs: Observation) -> np.ndarray:
        if self.last_action is not None:
            active = obs.active[self.active_rows]
            if not active.all():
                remaining = torch.from_numpy(np.flatnonzero(active)).to(self.last_action.device)
                self.state, self.last_action = (
                    self.state.select(remaining),
                    self.last_action[remaining],
                )
                self.active_rows = self.active_rows[active]
            self.state = self.world.observe(self.state, self.last_action, self._frames(obs))
        action = self.controller.act(self.state)
        self.last_action = action
        spec = self.world.actions
        actions = np.zeros((len(obs.states), *spec.shape), np.float32)
        actions[self.active_rows] = action.float().cpu().numpy()
        return actions if spec.kind == "continuous" else actions.astype(np.int64)

    def _frames(self, obs: Observation) -> Tensor:
        assert obs.frames is not None
        return torch.from_numpy(obs.frames[self.active_rows]).to(self.world.device)
