"""The true simulator under a sampling planner: the upper bound of planning in a world model.

Cross-entropy method (Rubinstein 1999) over the agent's target positions.  Letters: N starts,
K candidates, T steps of a plan, B action blocks of it, M elites, S numbers of a state.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from data.pusht.vector_pusht import VectorPushT
from evaluation.protocols.policies import Observation

HORIZON, ACTION_BLOCK = 5, 5
PLAN_STEPS = HORIZON * ACTION_BLOCK
INIT_STD = 80.0  # pixels between two knots at first
MIN_STD = 4.0  # pixels, lowest standard deviation of the search
POSITION_SCALE, ANGLE_SCALE = 20.0, np.deg2rad(20)  # the protocols' tolerances weigh the two errors


class OracleCem:
    """Plan five blocks of five steps, execute them, and plan again. It is given states.

    A candidate has a knot at the end of each block, the agent's target there; targets in between
    are interpolated.  Cost is the distance of the last state to the goal, agent, block and angle.
    """

    needs_pixels = False

    def __init__(
        self,
        open_envs: Callable[[], VectorPushT],
        num_samples: int,
        iterations: int,
        num_elites: int = 0,
        seed: int = 0,
    ):
        self.open_envs = open_envs  # simulators are started at the first plan
        self.num_samples, self.iterations = num_samples, iterations
        self.num_elites = num_elites or max(2, num_samples // 10)
        self.seed = seed

    def reset(self, obs: Observation, goal: Observation | None) -> None:
        assert goal is not None, "planning needs a goal"
        self.goals = goal.states
        self.rng = np.random.default_rng(self.seed)
        self.steps_left = 0

    def act(self, obs: Observation) -> np.ndarray:
        if self.steps_left == 0:
            self.plans = obs.states[:, None, :2].repeat(PLAN_STEPS, 1)
            rows = np.flatnonzero(obs.active)
            self.plans[rows] = self.plan(obs.states[rows], obs.velocities[rows], self.goals[rows])
            self.steps_left = PLAN_STEPS
        action = self.plans[:, PLAN_STEPS - self.steps_left]
        self.steps_left -= 1
        return action

    def plan(self, states: np.ndarray, velocities: np.ndarray, goals: np.ndarray) -> np.ndarray:
        """Give the best plan from each start: (N, T, 2) targets."""
        num_starts, agents = len(states), states[:, :2]
        mean = np.repeat(agents[:, None], HORIZON, 1)  # (N, B, 2)
        # Later knots vary more, as in a random walk.
        std = np.tile(INIT_STD * np.sqrt(np.arange(1, HORIZON + 1))[:, None], (num_starts, 1, 2))
        best_knots, best_cost = mean.copy(), np.full(num_starts, np.inf)
        for iteration in range(self.iterations):
            noise = self.rng.standard_normal((num_starts, self.num_samples, HORIZON, 2))
            if iteration == 0:  # consecutive blocks move in one direction, as a push does
                noise = noise.cumsum(2) / np.sqrt(np.arange(1, HORIZON + 1))[:, None]
            knots = mean[:, None] + std[:, None] * noise
            knots[:, 0] = best_knots
            if iteration == 0:
                knots[:, 1] = goals[:, None, :2]
            knots = knots.clip(0, 512)
            final_states = self.open_envs().rollout(states, velocities, interpolate(agents, knots))
            costs = goal_cost(final_states, goals[:, None])  # (N, K)
            elite_index = np.argsort(costs, 1)[:, : self.num_elites]
            elites = np.take_along_axis(knots, elite_index[..., None, None], 1)
            mean, std = elites.mean(1), elites.std(1).clip(min=MIN_STD)
            best_index = elite_index[:, 0]
            rows = np.arange(num_starts)
            better = costs[rows, best_index] < best_cost
            best_knots[better] = knots[rows, best_index][better]
            best_cost = np.minimum(best_cost, costs[rows, best_index])
        return interpolate(agents, best_knots[:, None])[:, 0]


def interpolate(agents: np.ndarray, knots: np.ndarray) -> np.ndarray:
    """Interpolate knots to the target of every step: (N, K, B, 2) -> (N, K, T, 2)."""
    start = np.broadcast_to(agents[:, None, None], (*knots.shape[:2], 1, 2))
    points = np.concatenate([start, knots], 2)
    fractions = (np.arange(1, ACTION_BLOCK + 1) / ACTION_BLOCK)[:, None]
    segments = points[:, :, :-1, None] * (1 - fractions) + points[:, :, 1:, None] * fractions
    return segments.reshape(*knots.shape[:2], PLAN_STEPS, 2)


def goal_cost(states: np.ndarray, goals: np.ndarray) -> np.ndarray:
    """Give the cost of final states, 1 a tolerance of position or angle: (..., S) -> (...)."""
    angle = np.abs((states[..., 4] - goals[..., 4] + np.pi) % (2 * np.pi) - np.pi)
    agent = np.linalg.norm(states[..., :2] - goals[..., :2], axis=-1)
    block = np.linalg.norm(states[..., 2:4] - goals[..., 2:4], axis=-1)
    return (block + agent / 2) / POSITION_SCALE + angle / ANGLE_SCALE
