"""The true simulator under a sampling planner: what the best world model could reach.

Cross-entropy method (Rubinstein 1999) over the way of the agent's target.  Letters: N starts,
K candidates, T steps of a plan, B blocks of it, M best candidates.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from evaluation.protocols.policies import View

BLOCKS, BLOCK_STEPS = 5, 5
STEPS = BLOCKS * BLOCK_STEPS
SPREAD = 80.0  # pixels that a block's end first strays from the end before it
LEAST = 4.0  # pixels, below which the search is not narrowed
POSITION, ANGLE = 20.0, np.deg2rad(20)  # the protocols' tolerances weigh the two errors


class SimulatorPlanner:
    """Plans five blocks of five steps, carries them out, and plans again. Reads states.

    A candidate is the agent's target at the end of each block; between them it moves evenly.
    Cost is the distance of the last state to the goal, agent, block and angle.
    """

    looks = False

    def __init__(
        self,
        open_pool: Callable[[], Any],
        samples: int,
        iterations: int,
        best: int = 0,
        seed: int = 0,
    ):
        self.open_pool = open_pool  # simulators are started when a plan is wanted
        self.samples, self.iterations = samples, iterations
        self.best = best or max(2, samples // 10)
        self.seed = seed

    def begin(self, view: View, goal: View | None) -> None:
        assert goal is not None, "planning needs a goal"
        self.goals = goal.states
        self.random = np.random.default_rng(self.seed)
        self.left = 0

    def act(self, view: View) -> np.ndarray:
        if self.left == 0:
            self.plans = view.states[:, None, :2].repeat(STEPS, 1)
            rows = np.flatnonzero(view.active)
            self.plans[rows] = self.plan(view.states[rows], view.velocities[rows], self.goals[rows])
            self.left = STEPS
        action = self.plans[:, STEPS - self.left]
        self.left -= 1
        return action

    def plan(self, states: np.ndarray, velocities: np.ndarray, goals: np.ndarray) -> np.ndarray:
        """Give the best plan found from each start: (N, T, 2) targets."""
        count, agents = len(states), states[:, :2]
        mean = np.repeat(agents[:, None], BLOCKS, 1)  # (N, B, 2)
        # Where a block ends strays the further the later it is, as a walk does.
        deviation = np.tile(SPREAD * np.sqrt(np.arange(1, BLOCKS + 1))[:, None], (count, 1, 2))
        best, cost = mean.copy(), np.full(count, np.inf)
        for iteration in range(self.iterations):
            noise = self.random.standard_normal((count, self.samples, BLOCKS, 2))
            if iteration == 0:  # blocks in a row go the same way, as pushing does
                noise = noise.cumsum(2) / np.sqrt(np.arange(1, BLOCKS + 1))[:, None]
            ends = mean[:, None] + deviation[:, None] * noise
            ends[:, 0] = best
            if iteration == 0:
                ends[:, 1] = goals[:, None, :2]
            ends = ends.clip(0, 512)
            last = self.open_pool().rollout(states, velocities, path(agents, ends))
            costs = distance(last, goals[:, None])  # (N, K)
            order = np.argsort(costs, 1)[:, : self.best]
            chosen = np.take_along_axis(ends, order[..., None, None], 1)
            mean, deviation = chosen.mean(1), chosen.std(1).clip(min=LEAST)
            first = order[:, 0]
            rows = np.arange(count)
            better = costs[rows, first] < cost
            best[better] = ends[rows, first][better]
            cost = np.minimum(cost, costs[rows, first])
        return path(agents, best[:, None])[:, 0]


def path(agents: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Targets at every step on the way through the ends of blocks: (N, K, B, 2) -> (N, K, T, 2)."""
    start = np.broadcast_to(agents[:, None, None], (*ends.shape[:2], 1, 2))
    corners = np.concatenate([start, ends], 2)
    share = (np.arange(1, BLOCK_STEPS + 1) / BLOCK_STEPS)[:, None]
    legs = corners[:, :, :-1, None] * (1 - share) + corners[:, :, 1:, None] * share
    return legs.reshape(*ends.shape[:2], STEPS, 2)


def distance(states: np.ndarray, goals: np.ndarray) -> np.ndarray:
    """Cost of ending in a state: 1 for each tolerance of position or angle: (..., S) -> (...)."""
    turn = np.abs((states[..., 4] - goals[..., 4] + np.pi) % (2 * np.pi) - np.pi)
    agent = np.linalg.norm(states[..., :2] - goals[..., :2], axis=-1)
    block = np.linalg.norm(states[..., 2:4] - goals[..., 2:4], axis=-1)
    return (block + agent / 2) / POSITION + turn / ANGLE
