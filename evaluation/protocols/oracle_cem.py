"""The true simulator under a sampling planner: what a perfect model would reach with that search.

The planner's cross-entropy method (models/planning/planner.py) over the agent's target
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
from models.controllers.task_cost import TaskCost
from models.planning.candidates import elite_weights, interpolate, select_best, weighted_moments

HORIZON, ACTION_BLOCK = 5, 5
PLAN_STEPS = HORIZON * ACTION_BLOCK
INIT_STD = 80.0  # pixels between two knots at first
WARM_START_STD = 20.0  # pixels, around the rest of a plan
MIN_STD = 4.0  # pixels, lowest standard deviation of the search
POSITION_SCALE, ANGLE_SCALE = 20.0, np.deg2rad(20)  # the protocols' tolerances weigh the two errors


class OracleCem:
    """Plan five blocks of five steps, execute them, and plan again. It is given states.

    A candidate has a knot at the end of each block, the agent's target there; targets in between
    are interpolated.  Cost is the distance of the last state to the goal, agent, block and angle.
    """

    needs_pixels = False
    horizon = HORIZON
    receding_horizon = PLAN_STEPS

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
            self.plans = obs.states[:, None, :2].repeat(self.horizon * ACTION_BLOCK, 1)
            rows = np.flatnonzero(obs.active)
            self.plans[rows] = self.plan_rows(obs, rows)
            self.steps_left = self.receding_horizon
        action = self.plans[:, self.receding_horizon - self.steps_left]
        self.steps_left -= 1
        return action

    def plan_rows(self, obs: Observation, rows: np.ndarray) -> np.ndarray:
        """Plan for the episodes at `rows`, (n,): (n, T, 2) targets."""
        return self.plan(obs.states[rows], obs.velocities[rows], self.goals[rows])

    def plan(self, states: np.ndarray, velocities: np.ndarray, goals: np.ndarray) -> np.ndarray:
        """Give the best plan from each start: (N, T, 2) targets."""

        def cost(final_states: np.ndarray) -> np.ndarray:
            return goal_cost(final_states, goals[:, None])

        return self.search(states, velocities, cost, goals[:, :2])

    def search(
        self,
        states: np.ndarray,
        velocities: np.ndarray,
        cost: Callable[[np.ndarray], np.ndarray],
        target: np.ndarray,
        warm_start: np.ndarray | None = None,
    ) -> np.ndarray:
        """Lower the cost of the last states of plans, (N, K, S) -> (N, K): the best, (N, T, 2).

        target: (N, 2), where the agent goes in one of the first candidates.
        warm_start: (N, B, 2), knots that half of the first candidates are near.
        """
        agents = torch.from_numpy(states[:, None, None, :2])  # (N, 1, 1, 2)
        mean = agents.expand(-1, -1, self.horizon, -1)
        # Later knots vary more, as in a random walk.
        growth = torch.arange(1, self.horizon + 1, dtype=torch.float64).sqrt()[:, None]
        std = (INIT_STD * growth).expand_as(mean)
        best, best_cost = mean[:, 0], torch.full((len(states),), torch.inf, dtype=torch.float64)
        shape = (len(states), self.num_samples, self.horizon, 2)
        for iteration in range(self.iterations):
            noise = torch.from_numpy(self.rng.standard_normal(shape))
            if iteration == 0:  # consecutive blocks move in one direction, as a push does
                noise = noise.cumsum(2) / growth
            knots = mean + std * noise
            knots[:, 0] = best
            if iteration == 0:
                knots[:, 1] = torch.from_numpy(target[:, None])
            if iteration == 0 and warm_start is not None:
                near = torch.from_numpy(self.rng.standard_normal(knots.shape)) * WARM_START_STD
                near[:, 0] = 0
                half = self.num_samples // 2
                knots[:, half:] = torch.from_numpy(warm_start)[:, None] + near[:, :-half]
            knots = knots.clamp(0, 512)
            targets = interpolate(_from(agents, knots), ACTION_BLOCK)
            final_states = self.open_envs().rollout(states, velocities, targets.numpy())
            costs = torch.from_numpy(cost(final_states))  # (N, K)
            mean, std = weighted_moments(knots, elite_weights(costs, self.num_elites))
            std = std.clamp(min=MIN_STD)
            found, found_cost = select_best(knots, costs)
            best = torch.where((found_cost < best_cost)[:, None, None], found, best)
            best_cost = torch.minimum(found_cost, best_cost)
        return interpolate(_from(agents, best[:, None]), ACTION_BLOCK)[:, 0].numpy()


class TaskOracleCem(OracleCem):
    """The same towards the goal of the task, as its learned cost has it, of true states.

    The goal is far away, so plans are longer, and less of them is executed; the rest is a warm
    start.  What is left between it and a search in the world with the same cost is due to the
    world's error, to that of what reads states from it, and to the proposals.
    """

    horizon = 8
    receding_horizon = 10

    def __init__(
        self,
        open_envs: Callable[[], VectorPushT],
        num_samples: int,
        iterations: int,
        task_cost: TaskCost,
        seed: int = 0,
    ):
        super().__init__(open_envs, num_samples, iterations, seed=seed)
        self.task_cost = task_cost

    def reset(self, obs: Observation, goal: Observation | None) -> None:
        super().reset(obs, obs)  # a goal that is not looked at
        self.warm_start: np.ndarray | None = None
        self.poses = obs.task_goals

    def plan_rows(self, obs: Observation, rows: np.ndarray) -> np.ndarray:
        states, velocities = obs.states[rows], obs.velocities[rows]
        warm_start = None if self.warm_start is None else self.warm_start[rows]
        poses = None if self.poses is None else torch.from_numpy(self.poses[rows]).float()

        def cost(final_states: np.ndarray) -> np.ndarray:
            return self._cost(final_states, poses)

        plans = self.search(states, velocities, cost, states[:, 2:4], warm_start)
        knots = plans[:, ACTION_BLOCK - 1 :: ACTION_BLOCK]
        executed = self.receding_horizon // ACTION_BLOCK
        rest = np.concatenate([knots[:, executed:], knots[:, -1:].repeat(executed, 1)], 1)
        self.warm_start = np.zeros((len(obs.states), *rest.shape[1:]))
        self.warm_start[rows] = rest
        return plans

    @torch.no_grad()
    def _cost(self, states: np.ndarray, poses: Tensor | None = None) -> np.ndarray:
        """(N, K, S) -> (N, K); poses: (N, 3) of the goals, if not the cost's own."""
        device = self.task_cost.goal.device
        goal = None if poses is None else poses.repeat_interleave(states.shape[1], 0).to(device)
        flat = torch.from_numpy(states.reshape(-1, states.shape[-1])).float()
        features = self.task_cost.features(flat.to(device))
        cost = self.task_cost.cost(features.repeat(1, 2), goal)
        return cost.cpu().numpy().astype(np.float64).reshape(states.shape[:-1])


def _from(agents: Tensor, knots: Tensor) -> Tensor:
    """Put the agent, (N, 1, 1, 2), before knots, (N, K, B, 2): (N, K, B + 1, 2)."""
    return torch.cat([agents.expand(-1, knots.shape[1], -1, -1), knots], dim=2)


def goal_cost(states: np.ndarray, goals: np.ndarray) -> np.ndarray:
    """Give the cost of final states, 1 a tolerance of position or angle: (..., S) -> (...)."""
    angle = np.abs((states[..., 4] - goals[..., 4] + np.pi) % (2 * np.pi) - np.pi)
    agent = np.linalg.norm(states[..., :2] - goals[..., :2], axis=-1)
    block = np.linalg.norm(states[..., 2:4] - goals[..., 2:4], axis=-1)
    return (block + agent / 2) / POSITION_SCALE + angle / ANGLE_SCALE
