"""Act towards what a picture shows, by plans made in imagination."""

from __future__ import annotations

import numpy as np
import torch

from data.actions import as_tensor
from models.controllers.planner import ToGoal
from pipeline.play.player import Player


class Towards:
    """Step -> action: a whole plan is carried out, then the next is made from what is imagined."""

    def __init__(self, player: Player, finder: ToGoal, goal: np.ndarray) -> None:
        """goal: (H, W, 3) uint8."""
        self.player, self.finder = player, finder
        picture = torch.from_numpy(np.ascontiguousarray(goal)).permute(2, 0, 1)
        self.goal = player.world.encode(picture[None])
        self.left: list[np.ndarray] = []

    @torch.no_grad()
    def __call__(self, step: int) -> np.ndarray:
        if not self.left:
            done = self.player.actions or list(self.player.start.actions)
            last = as_tensor(done[-1][None]) if done else None
            plan = self.finder.to_goal(self.player.state, self.goal, last, None)
            self.left = list(plan.actions[0].float().cpu().numpy())
        return self.left.pop(0)
