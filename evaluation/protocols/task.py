"""The task protocol of Diffusion Policy: push the block onto the fixed goal, from random starts.

Score is the best reward of an episode, averaged over episodes; success is the goal reached at any
time.  Every policy begins from the same seeds.  Letters: E episodes, N simulators.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tqdm import tqdm

from data.pusht.simulator import STEPS_PER_SECOND, SUCCESS_COVERAGE, random_start, reward
from data.pusht.vector_pusht import VectorPushT
from evaluation.measures.intervals import bootstrap, wilson
from evaluation.protocols.policies import Observation, Policy

FIRST_SEED = 100_000
MAX_STEPS = 300


def run_task(
    policy: Policy, envs: VectorPushT, seeds: list[int], steps: int = MAX_STEPS, name: str = "task"
) -> np.ndarray:
    """Play an episode from each seed and give its highest coverage: (E,).

    An episode that has succeeded is not played on: its score can grow no further.
    """
    max_coverage = np.zeros(len(seeds))
    with tqdm(total=len(seeds) * steps, desc=name, leave=False, unit="step") as progress:
        for start in range(0, len(seeds), envs.num_envs):
            batch = seeds[start : start + envs.num_envs]
            starts = np.stack([random_start(seed) for seed in batch])
            coverage = run_batch(policy, envs, starts, steps, progress)
            max_coverage[start : start + len(batch)] = coverage
    return max_coverage


def run_batch(
    policy: Policy, envs: VectorPushT, starts: np.ndarray, steps: int, progress: Any
) -> np.ndarray:
    """Play at most N episodes at once: the highest coverage of each, (len(starts),)."""
    count = len(starts)
    padded_starts = np.concatenate([starts, np.repeat(starts[:1], envs.num_envs - count, 0)])
    envs.reset(np.arange(envs.num_envs), padded_starts, np.zeros((envs.num_envs, 2)))
    active = np.arange(envs.num_envs) < count
    states, velocities = padded_starts, np.zeros((envs.num_envs, 2))
    max_coverage = np.zeros(envs.num_envs)
    for step in range(steps):
        obs = Observation(
            envs.frames(active) if policy.needs_pixels else None, states, velocities, active
        )
        if step == 0:
            policy.reset(obs, None)
        prev_states = states
        states, coverages = envs.step(policy.act(obs), active)
        velocities = (states - prev_states)[:, :2] * STEPS_PER_SECOND
        max_coverage = np.where(active, np.maximum(max_coverage, coverages), max_coverage)
        progress.update(int(active.sum()))
        active = active & (max_coverage < SUCCESS_COVERAGE)
        if not active.any():
            break
    return max_coverage[:count]


def summarize(max_coverage: np.ndarray) -> dict[str, Any]:
    """Highest coverages (E,) -> score and success with their 95% intervals."""
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
