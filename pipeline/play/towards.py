"""Act towards what a picture shows, by plans made in imagination."""

from __future__ import annotations

import numpy as np
import torch

from data.actions import as_tensor
from models.controllers.planner import GoalPlanner
from pipeline.play.player import Player


class PlanExecutor:
    """Step -> action: a whole plan is carried out, then the next is made from what is imagined."""

    def __init__(self, player: Player, planner: GoalPlanner, goal: np.ndarray) -> None:
        """goal: (H, W, 3) uint8."""
        self.player, self.planner = player, planner
        image = torch.from_numpy(np.ascontiguousarray(goal)).permute(2, 0, 1)
        self.goal = player.world.encode(image[None])
        self.queue: list[np.ndarray] = []

    @torch.no_grad()
    def __call__(self, step: int) -> np.ndarray:
        if not self.queue:
            past_actions = self.player.actions or list(self.player.start.actions)
            last_action = as_tensor(past_actions[-1][None]) if past_actions else None
            plan = self.planner.plan(self.player.state, self.goal, last_action, None)
            self.queue = list(plan.actions[0].float().cpu().numpy())
        return self.queue.pop(0)
