"""The true simulator under a sampling planner: the upper bound of planning in a world model.

The planner's cross-entropy method (models/controllers/planner.py) over the agent's target
positions.  Letters: N starts, K candidates, T steps of a plan, B action blocks of it, M elites,
S numbers of a state.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from data.pusht.vector_pusht import VectorPushT
from evaluation.protocols.policies import Observation
from models.controllers.candidates import elite_weights, interpolate, select_best, weighted_moments

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
        agents = torch.from_numpy(states[:, None, None, :2])  # (N, 1, 1, 2)
        goal_agents = torch.from_numpy(goals[:, None, :2])
        mean = agents.expand(-1, -1, HORIZON, -1)
        # Later knots vary more, as in a random walk.
        growth = torch.arange(1, HORIZON + 1, dtype=torch.float64).sqrt()[:, None]
        std = (INIT_STD * growth).expand_as(mean)
        best, best_cost = mean[:, 0], torch.full((len(states),), torch.inf, dtype=torch.float64)
        shape = (len(states), self.num_samples, HORIZON, 2)
        for iteration in range(self.iterations):
            noise = torch.from_numpy(self.rng.standard_normal(shape))
            if iteration == 0:  # consecutive blocks move in one direction, as a push does
                noise = noise.cumsum(2) / growth
            knots = mean + std * noise
            knots[:, 0] = best
            if iteration == 0:
                knots[:, 1] = goal_agents
            knots = knots.clamp(0, 512)
            targets = interpolate(_from(agents, knots), ACTION_BLOCK)
            final_states = self.open_envs().rollout(states, velocities, targets.numpy())
            costs = torch.from_numpy(goal_cost(final_states, goals[:, None]))  # (N, K)
            mean, std = weighted_moments(knots, elite_weights(costs, self.num_elites))
            std = std.clamp(min=MIN_STD)
            found, cost = select_best(knots, costs)
            best = torch.where((cost < best_cost)[:, None, None], found, best)
            best_cost = torch.minimum(cost, best_cost)
        return interpolate(_from(agents, best[:, None]), ACTION_BLOCK)[:, 0].numpy()


def _from(agents: Tensor, knots: Tensor) -> Tensor:
    """Put the agent, (N, 1, 1, 2), before knots, (N, K, B, 2): (N, K, B + 1, 2)."""
    return torch.cat([agents.expand(-1, knots.shape[1], -1, -1), knots], dim=2)


def goal_cost(states: np.ndarray, goals: np.ndarray) -> np.ndarray:
    """Give the cost of final states, 1 a tolerance of position or angle: (..., S) -> (...)."""
    angle = np.abs((states[..., 4] - goals[..., 4] + np.pi) % (2 * np.pi) - np.pi)
    agent = np.linalg.norm(states[..., :2] - goals[..., :2], axis=-1)
    block = np.linalg.norm(states[..., 2:4] - goals[..., 2:4], axis=-1)
    return (block + agent / 2) / POSITION_SCALE + angle / ANGLE_SCALE
