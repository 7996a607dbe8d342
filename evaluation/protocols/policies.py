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
class View:
    """What N simulators show after a step. Only the baselines that say so look at `states`."""

    frames: np.ndarray | None  # (N, 3, H, W) uint8; None for policies that do not look at frames
    states: np.ndarray  # (N, S)
    velocities: np.ndarray  # (N, 2) of the agent, units of the world a second
    active: np.ndarray  # (N,) bool, False where the episode is over and the action is not used


class Policy(Protocol):
    """Decides what N simulators do next; a planner of any kind fits in."""

    looks: bool
    """It needs frames."""

    def begin(self, view: View, goal: View | None) -> None:
        """Start N episodes, towards N goals where the protocol has them."""
        ...

    def act(self, view: View) -> np.ndarray:
        """Give actions (N, A) in the environment's units; the first view is that of `begin`."""
        ...


class Random:
    """Uniform actions, whatever is seen."""

    looks = False

    def __init__(self, actions: Any, seed: int = 0):
        self.actions = actions
        self.seed = seed

    def begin(self, view: View, goal: View | None) -> None:
        self.random = np.random.default_rng(self.seed)

    def act(self, view: View) -> np.ndarray:
        return self.actions.sample(len(view.states), self.random)


class Still:
    """Stays where it began. Reads the agent's place, the first two numbers of the state."""

    looks = False

    def begin(self, view: View, goal: View | None) -> None:
        self.place = view.states[:, :2].copy()

    def act(self, view: View) -> np.ndarray:
        return self.place


class AgentOnly:
    """Goes to where the goal shows the agent, and leaves the block to chance. Reads states."""

    looks = False

    def begin(self, view: View, goal: View | None) -> None:
        assert goal is not None, "only goal protocols have a goal"
        self.place = goal.states[:, :2].copy()

    def act(self, view: View) -> np.ndarray:
        return self.place


class Scripted:
    """The pusher that records episodes (data/pusht/scripted_policy.py), to the task's goal; it sees states."""

    looks = False

    def begin(self, view: View, goal: View | None) -> None:
        self.pusher = ScriptedPolicy()

    def act(self, view: View) -> np.ndarray:
        return np.stack([self.pusher.act(state) for state in view.states])


class InWorld:
    """A trained controller: frames become the world's latent state, which is all that it sees.

    It is not told a goal: controllers of this project are trained for the task's own.
    """

    looks = True

    def __init__(self, world: Any, controller: Any, seed: int = 0):
        self.seed = seed
        self.world = world
        self.controller = controller

    @torch.inference_mode()
    def begin(self, view: View, goal: View | None) -> None:
        torch.manual_seed(self.seed)  # controllers draw their actions
        self.rows = np.flatnonzero(view.active)  # the simulators that the state still follows
        frames = self._frames(view)
        spec = self.world.actions
        kind = torch.float32 if spec.kind == "continuous" else torch.int64
        none_yet = torch.zeros(len(frames), 0, *spec.shape, dtype=kind, device=frames.device)
        self.state = self.world.reset(frames[:, None], none_yet)
        self.last: Tensor | None = None

    @torch.inference_mode()
    def act(self, view: View) -> np.ndarray:
        if self.last is not None:
            alive = view.active[self.rows]
            if not alive.all():
                kept = torch.from_numpy(np.flatnonzero(alive)).to(self.last.device)
                self.state, self.last = self.state.select(kept), self.last[kept]
                self.rows = self.rows[alive]
            self.state = self.world.observe(self.state, self.last, self._frames(view))
        chosen = self.controller.act(self.state)
        self.last = chosen
        spec = self.world.actions
        actions = np.zeros((len(view.states), *spec.shape), np.float32)
        actions[self.rows] = chosen.float().cpu().numpy()
        return actions if spec.kind == "continuous" else actions.astype(np.int64)

    def _frames(self, view: View) -> Tensor:
        assert view.frames is not None
        return torch.from_numpy(view.frames[self.rows]).to(self.world.device)
