"""Policies in the simulator: baselines and trained controllers, for N simulators at a time.

Letters: N simulators, S numbers of a simulator state, A numbers of an action.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from data.actions import ActionSpec
from data.pusht.scripted_policy import ScriptedPolicy
from data.pusht.simulator import GOAL
from models.controllers.controller import Controller
from models.world import World
from pipeline.inference.world_actor import WorldActor


@dataclass
class Observation:
    """What N simulators give after a step. Only some baselines use `states`."""

    frames: np.ndarray | None  # (N, 3, H, W) uint8; None where the policy needs none
    states: np.ndarray  # (N, S)
    velocities: np.ndarray  # (N, 2) of the agent, units of the world per second
    active: np.ndarray  # (N,) bool, False where the episode has ended and the action is not used
    task_goals: np.ndarray | None = None
    """(N, 3), poses of the task's goals, if they are not those of the simulators."""


class Policy(Protocol):
    """Gives the actions of N simulators."""

    needs_pixels: bool
    """Observations hold frames."""

    def reset(self, obs: Observation, goal: Observation | None) -> None:
        """Start N episodes, towards N goals where the protocol has goals."""
        ...

    def act(self, obs: Observation) -> np.ndarray:
        """Give actions (N, A) in the environment's units; first for the observation of `reset`."""
        ...


class Random:
    """Take uniform random actions."""

    needs_pixels = False

    def __init__(self, actions: ActionSpec, seed: int = 0):
        self.actions = actions
        self.seed = seed

    def reset(self, obs: Observation, goal: Observation | None) -> None:
        self.rng = np.random.default_rng(self.seed)

    def act(self, obs: Observation) -> np.ndarray:
        return self.actions.sample(len(obs.states), self.rng)


class NoOp:
    """Stay at the start. It is given the agent's position, the first two numbers of the state."""

    needs_pixels = False

    def reset(self, obs: Observation, goal: Observation | None) -> None:
        self.position = obs.states[:, :2].copy()

    def act(self, obs: Observation) -> np.ndarray:
        return self.position


class GoalAgentPosition:
    """Move to the agent's position in the goal, and ignore the block. It is given states."""

    needs_pixels = False

    def reset(self, obs: Observation, goal: Observation | None) -> None:
        assert goal is not None, "only goal protocols have a goal"
        self.position = goal.states[:, :2].copy()

    def act(self, obs: Observation) -> np.ndarray:
        return self.position


class Scripted:
    """Push to the task's goal by rules (data/pusht/scripted_policy.py). It is given states."""

    needs_pixels = False

    def __init__(self, goal: np.ndarray = GOAL) -> None:
        self.goal = goal

    def reset(self, obs: Observation, goal: Observation | None) -> None:
        poses = obs.task_goals
        poses = np.tile(self.goal, (len(obs.states), 1)) if poses is None else poses
        self.policies = [ScriptedPolicy(pose) for pose in poses]

    def act(self, obs: Observation) -> np.ndarray:
        pairs = zip(self.policies, obs.states, strict=True)
        return np.stack([policy.act(state) for policy, state in pairs])


class WorldModelPolicy:
    """Act by a trained controller, on the world's state after the frames seen so far.

    It is given no goal: these controllers are trained for the task's own.
    """

    needs_pixels = True

    def __init__(self, world: World, controller: Controller, seed: int = 0):
        self.seed, self.actor = seed, WorldActor(world, controller)

    def reset(self, obs: Observation, goal: Observation | None) -> None:
        assert obs.frames is not None
        self.actor.reset(obs.frames, obs.active, self.seed)

    def act(self, obs: Observation) -> np.ndarray:
        assert obs.frames is not None
        return self.actor.act(obs.frames, obs.active)
