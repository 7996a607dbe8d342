"""The task protocol of Diffusion Policy: push the block onto the fixed goal, from random starts.

Score is the highest reward of an episode, averaged over episodes; success is the goal reached at
any step (LeRobot), which ends the episode.  Every policy starts from the same seeds.  Letters: E
episodes, T steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from data.pusht.simulator import SUCCESS_COVERAGE, random_start, reward
from data.pusht.task_goal import random_pose
from data.pusht.vector_pusht import VectorPushT
from evaluation.measures.intervals import bootstrap, wilson
from evaluation.protocols.policies import Policy
from evaluation.protocols.rollout import Starts, Trajectories, Watcher, play_episodes

FIRST_SEED = 100_000
MAX_STEPS = 300
STEPS_WITHIN = (100, 200)  # of which the success is given, too


def run_task(
    policy: Policy,
    envs: VectorPushT,
    seeds: list[int],
    steps: int = MAX_STEPS,
    name: str = "task",
    watchers: Sequence[Watcher] = (),
    goals: np.ndarray | None = None,
) -> np.ndarray:
    """Play an episode from each seed, until it succeeds, and give the coverages after each step:
    (E, T); an episode that has ended repeats its last one.

    goals: (E, 3) of the episodes, if not that of the simulators.
    """

    def is_done(episodes: np.ndarray, played: Trajectories) -> np.ndarray:
        return played.coverages.max(1) >= SUCCESS_COVERAGE

    states = np.stack([random_start(seed) for seed in seeds])
    starts = Starts(states, np.zeros((len(seeds), 2)), goals)
    played = play_episodes(policy, envs, starts, steps, is_done, name=name, watchers=watchers)
    return played.coverages


def random_goals(seeds: Sequence[int]) -> np.ndarray:
    """Draw the goal of each episode by its seed, (E, 3), anywhere the block can be pushed to."""
    return np.stack([random_pose(np.random.default_rng((seed, 1))) for seed in seeds])


def steps_until_success(coverages: np.ndarray) -> np.ndarray:
    """Count steps until the goal is reached: (E, T) -> (E,) int64; 0 where it is not."""
    reached = coverages >= SUCCESS_COVERAGE
    return np.where(reached.any(1), reached.argmax(1) + 1, 0)


def summarize(coverages: np.ndarray) -> dict[str, Any]:
    """Give score and success with their 95% intervals, and more, from coverages (E, T)."""
    scores = reward(coverages.max(1))
    low, high = bootstrap(scores)
    steps = steps_until_success(coverages)
    successes, count = int((steps > 0).sum()), len(steps)
    success_low, success_high = wilson(successes, count)
    return {
        "score": float(scores.mean()),
        "low": low,
        "high": high,
        "success": successes / count,
        "success_low": success_low,
        "success_high": success_high,
        **{
            f"success_within_{limit}": float(((steps > 0) & (steps <= limit)).mean())
            for limit in STEPS_WITHIN
        },
        "steps": float(np.median(steps[steps > 0])) if successes else None,
        "end_score": float(reward(coverages[:, -1]).mean()),
        "coverage": float(coverages.max(1).mean()),
        "n": count,
    }
