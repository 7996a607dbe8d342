"""A trained controller that acts in an environment, through what its world makes of the frames.

Letters: N environments, (H, W) of a frame, A numbers of an action.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from models.controllers.controller import Controller
from models.world import World


class WorldActor:
    """Observes N environments from the first frames of their episodes on, and acts in each."""

    def __init__(self, world: World, controller: Controller) -> None:
        self.world, self.controller = world, controller

    @torch.inference_mode()
    def reset(self, frames: np.ndarray, active: np.ndarray, seed: int) -> None:
        """Start episodes at frames (N, 3, H, W) uint8, those that are `active`, (N,) bool.

        seed: of what controllers sample.
        """
        torch.manual_seed(seed)
        self.controller.reset()
        self.active_rows = np.flatnonzero(active)  # the rows that the state has
        first = self._tensor(frames)
        no_actions = self.world.actions.empty(len(first), 0).to(first.device)
        self.state = self.world.reset(first[:, None], no_actions)
        self.last_action: Tensor | None = None

    @torch.inference_mode()
    def act(self, frames: np.ndarray, active: np.ndarray) -> np.ndarray:
        """Give actions (N, A) or (N,) in the environment's units; first for the frames of `reset`.
        Zeros for those that are not active any more."""
        if self.last_action is not None:
            still = active[self.active_rows]
            if not still.all():
                rows = torch.from_numpy(np.flatnonzero(still)).to(self.last_action.device)
                self.state, self.last_action = self.state.select(rows), self.last_action[rows]
                self.active_rows = self.active_rows[still]
            self.state = self.world.observe(self.state, self.last_action, self._tensor(frames))
        action = self.controller.act(self.state)
        self.last_action = action
        spec = self.world.actions
        actions = np.zeros((len(frames), *spec.shape), np.float32)
        actions[self.active_rows] = action.float().cpu().numpy()
        return actions if spec.kind == "continuous" else actions.astype(np.int64)

    def _tensor(self, frames: np.ndarray) -> Tensor:
        return torch.from_numpy(frames[self.active_rows]).to(self.world.device)
