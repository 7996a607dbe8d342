"""Policies of latent actions in the simulator: a map turns their codes into true actions.

Letters: N simulators, A numbers of a true action.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from evaluation.protocols.mpc import MpcPolicy
from evaluation.protocols.policies import Observation, Policy, WorldModelPolicy
from models.action_map import ActionMap
from models.controllers.controller import Controller
from models.dynamics.dynamics import State
from models.world import World


class MappedPolicy:
    """Acts by the codes of a policy. Where true actions are places it is given the agent's own,
    which is what a mouse knows of itself."""

    def __init__(self, policy: Policy, action_map: ActionMap) -> None:
        self.policy, self.action_map = policy, action_map
        self.needs_pixels = policy.needs_pixels

    def reset(self, obs: Observation, goal: Observation | None) -> None:
        self.policy.reset(obs, goal)

    def act(self, obs: Observation) -> np.ndarray:
        return mapped(self.action_map, self.policy.act(obs), obs)


class LatentMpcPolicy(MpcPolicy):
    """Plans codes in the world from the frames seen so far, whose actions it infers."""

    def __init__(self, *args, action_map: ActionMap, **settings) -> None:
        super().__init__(*args, **settings)
        self.action_map = action_map

    def act(self, obs: Observation) -> np.ndarray:
        return mapped(self.action_map, super().act(obs), obs)

    @torch.no_grad()
    def _observe(self, rows: np.ndarray) -> tuple[State, None]:
        """Infer what happened, rather than what was meant: a map is not exact."""
        frames = torch.from_numpy(np.stack([f[rows] for f in self.frame_history], 1))
        frames = frames.to(self.world.device)
        actions = self.world.actions.empty(len(rows), 0)
        if frames.shape[1] > 1:
            actions = self.world.actions_of(frames, actions)
        return self.world.reset(frames, actions), None


def controller_policies(
    world: World, controllers: Mapping[str, Controller], action_map: ActionMap | None
) -> dict[str, Policy]:
    """Give controllers as policies; in a world of latent actions through a map, and none without
    one."""
    policies = {name: WorldModelPolicy(world, each) for name, each in controllers.items()}
    if not world.infers_actions:
        return {**policies}
    if action_map is None:
        return {}
    return {name: MappedPolicy(policy, action_map) for name, policy in policies.items()}


def mapped(action_map: ActionMap, codes: np.ndarray, obs: Observation) -> np.ndarray:
    """Turn codes (N,) into true actions, (N, A) or (N,)."""
    places = torch.from_numpy(obs.states[:, :2]).float() if action_map.needs_place else None
    return action_map.to_true(torch.from_numpy(codes), places).numpy()
