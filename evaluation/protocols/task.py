"""The task protocol of Diffusion Policy: push the block onto the fixed goal, from random starts.

Score is the best reward of an episode, averaged over episodes; success is the goal reached at any
time.  Every policy begins from the same seeds.  Letters: E episodes, N simulators.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tqdm import tqdm

from data.pusht.simulator import STEPS_PER_SECOND, SUCCESS, random_start, reward
from data.pusht.vector_pusht import SimulatorPool
from evaluation.measures.intervals import bootstrap, wilson
from evaluation.protocols.policies import Policy, View

FIRST_SEED = 100_000
STEPS = 300


def run_task(
    policy: Policy, pool: SimulatorPool, seeds: list[int], steps: int = STEPS, name: str = "task"
) -> np.ndarray:
    """Play an episode from each seed and give its highest coverage: (E,).

    An episode that has succeeded is not played on: its score can grow no further.
    """
    best = np.zeros(len(seeds))
    with tqdm(total=len(seeds) * steps, desc=name, leave=False, unit="step") as bar:
        for first in range(0, len(seeds), pool.count):
            chunk = seeds[first : first + pool.count]
            starts = np.stack([random_start(seed) for seed in chunk])
            coverage = play(policy, pool, starts, steps, bar)
            best[first : first + len(chunk)] = coverage
    return best


def play(
    policy: Policy, pool: SimulatorPool, starts: np.ndarray, steps: int, bar: Any
) -> np.ndarray:
    """Play at most N episodes at once: the highest coverage of each, (len(starts),)."""
    count = len(starts)
    seats = np.concatenate([starts, np.repeat(starts[:1], pool.count - count, 0)])
    pool.reset(np.arange(pool.count), seats, np.zeros((pool.count, 2)))
    active = np.arange(pool.count) < count
    states, velocities = seats, np.zeros((pool.count, 2))
    best = np.zeros(pool.count)
    for step in range(steps):
        view = View(pool.frames(active) if policy.looks else None, states, velocities, active)
        if step == 0:
            policy.begin(view, None)
        before = states
        states, coverages = pool.step(policy.act(view), active)
        velocities = (states - before)[:, :2] * STEPS_PER_SECOND
        best = np.where(active, np.maximum(best, coverages), best)
        bar.update(int(active.sum()))
        active = active & (best < SUCCESS)
        if not active.any():
            break
    return best[:count]


def summary(best: np.ndarray) -> dict[str, Any]:
    """Highest coverages (E,) -> score and success with their 95% intervals."""
    scores = reward(best)
    low, high = bootstrap(scores)
    succeeded = int((best >= SUCCESS).sum())
    success_low, success_high = wilson(succeeded, len(best))
    return {
        "score": float(scores.mean()),
        "low": low,
        "high": high,
        "success": succeeded / len(best),
        "success_low": success_low,
        "success_high": success_high,
        "coverage": float(best.mean()),
        "n": len(best),
    }
