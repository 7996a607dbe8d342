"""The task protocol of Diffusion Policy: push the block onto the fixed goal, from random starts.

Score is the highest reward of an episode, averaged over episodes; success is the goal reached at
any step.  Every policy starts from the same seeds.  Letters: E episodes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from data.pusht.simulator import SUCCESS_COVERAGE, random_start, reward
from data.pusht.vector_pusht import VectorPushT
from evaluation.measures.intervals import bootstrap, wilson
from evaluation.protocols.policies import Policy
from evaluation.protocols.rollout import Starts, Trajectories, play_episodes

FIRST_SEED = 100_000
MAX_STEPS = 300


def run_task(
    policy: Policy, envs: VectorPushT, seeds: list[int], steps: int = MAX_STEPS, name: str = "task"
) -> np.ndarray:
    """Play an episode from each seed, until it succeeds, and give its highest coverage: (E,)."""

    def is_done(episodes: np.ndarray, played: Trajectories) -> np.ndarray:
        return played.coverages.max(1) >= SUCCESS_COVERAGE

    states = np.stack([random_start(seed) for seed in seeds])
    starts = Starts(states, np.zeros((len(seeds), 2)))
    return play_episodes(policy, envs, starts, steps, is_done, name=name).coverages.max(1)


def summarize(max_coverage: np.ndarray) -> dict[str, Any]:
    """Give score and success with their 95% intervals, from the highest coverages (E,)."""
    scores = reward(max_coverage)
    low, high = bootstrap(scores)
    succeeded = int((max_coverage >= SUCCESS_COVERAGE).sum())
    success_low, success_high = wilson(succeeded, len(max_coverage))
    return {
        "score": float(scores.mean()),
        "low": low,
        "high": high,
        "success": succeeded / len(max_coverage),
        "success_low": success_low,
        "success_high": success_high,
        "coverage": float(max_coverage.mean()),
        "n": len(max_coverage),
    }
