"""Act in the simulator towards a goal that is given: images, or the task by its learned cost.

No state says that images are reached, so what is measured is the cost that a planner lowers, of
the true frames; and where the block's place is known, how far it is from there.  Starts are those
of the task protocol.  Letters: E episodes, T steps, G goals, N codes or P patches of D numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.pusht.simulator import SUCCESS_COVERAGE, angle_difference, random_start
from data.pusht.vector_pusht import VectorPushT
from evaluation.measures.intervals import bootstrap
from evaluation.protocols.policies import Policy
from evaluation.protocols.rollout import Starts, Trajectories, Watcher, play_episodes
from models.planning.plan import Objective
from models.world import World

MIN_COST = 1e-9  # of a start, by which costs are divided


class CostMeter:
    """Measures what a planner lowers, of the frames that are played."""

    def __init__(
        self, world: World, objective: Objective, goals: Tensor, num_episodes: int, num_steps: int
    ) -> None:
        """goals: latents of the goal, or of a set of goals, (G, N) or (G, P, D)."""
        self.world, self.objective = world, objective
        self.goal = world.vectors(goals[:1])
        self.costs = np.zeros((num_episodes, num_steps + 1))
        """(E, 1 + T), at the start and after each step; an ended episode repeats its last."""

    def begin(self, episodes: np.ndarray, goals: np.ndarray | None) -> None:
        self._episodes, self._step = episodes, 0

    @torch.no_grad()
    def add(self, frames: np.ndarray) -> None:
        shown = torch.from_numpy(frames[: len(self._episodes)]).to(self.world.device)
        tracked = self.objective.start(self.world.embed(shown))
        cost = self.objective.cost(tracked, self.goal.expand(len(shown), *self.goal.shape[1:]))
        self.costs[self._episodes, self._step :] = cost.float().cpu().numpy()[:, None]
        self._step += 1


def run_given_goal(
    policy: Policy,
    envs: VectorPushT,
    seeds: list[int],
    steps: int,
    ends_when_solved: bool,
    watchers: tuple[Watcher, ...],
    name: str,
) -> Trajectories:
    """Play an episode from each seed, for all steps, or until the task is solved."""

    def is_done(episodes: np.ndarray, played: Trajectories) -> np.ndarray:
        return ends_when_solved & (played.coverages.max(1) >= SUCCESS_COVERAGE)

    starts = Starts(np.stack([random_start(seed) for seed in seeds]), np.zeros((len(seeds), 2)))
    return play_episodes(policy, envs, starts, steps, is_done, name=name, watchers=watchers)


def block_errors(states: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """Compare blocks of (..., 5) with a pose (3,): pixels and degrees, (..., 2)."""
    pixels = np.linalg.norm(states[..., 2:4] - pose[:2], axis=-1)
    return np.stack([pixels, np.rad2deg(np.abs(angle_difference(states[..., 4], pose[2])))], -1)


def summarize(
    costs: np.ndarray, seeds: list[int], played: Trajectories, pose: np.ndarray | None
) -> dict[str, Any]:
    """Give costs (E, 1 + T) as shares of the starts', and errors of the block where its pose at the
    goal is known, (3,)."""
    shares = costs / np.maximum(costs[:, :1], MIN_COST)
    end, lowest = shares[:, -1], shares.min(1)
    low, high = bootstrap(end)
    lowest_low, lowest_high = bootstrap(lowest)
    result: dict[str, Any] = {
        "end_cost": float(end.mean()),
        "low": low,
        "high": high,
        "lowest_cost": float(lowest.mean()),
        "lowest_cost_low": lowest_low,
        "lowest_cost_high": lowest_high,
        "n": len(costs),
    }
    if pose is not None:
        starts = block_errors(np.stack([random_start(seed) for seed in seeds]), pose)
        ends = block_errors(played.states[:, -1], pose)
        for column, unit in enumerate(("px", "degrees")):
            result[f"start_block_{unit}"] = float(starts[:, column].mean())
            result[f"block_{unit}"] = float(ends[:, column].mean())
            key = f"block_{unit}"
            result[f"{key}_low"], result[f"{key}_high"] = bootstrap(ends[:, column])
    return result
