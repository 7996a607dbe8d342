"""Goal reaching on Push-T: a start and a later state of the same held-out episode, and a budget.

Letters: n pairs, N simulators, T steps, S numbers of a state.  Protocols whose figures must never
stand in one row: `first_hit` (LeWorldModel, stable-worldmodel), `chunk_end` (DINO-WM), `strict` and
`far`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from data.pusht.simulator import STEPS_PER_SECOND, angle_difference
from data.pusht.vector_pusht import VectorPushT
from data.shards import EpisodeDataset
from evaluation.measures.intervals import wilson
from evaluation.protocols.policies import Observation, Policy

AGENT_AND_BLOCK, BLOCK, DEGREES = 0, 1, 2  # the errors of a step, in this order
BUDGET = 50
CHUNK = 25


@dataclass(frozen=True)
class StartGoal:
    """Where to begin and what to reach: two steps of one episode of the recordings."""

    seed: int
    episode: int
    start: int
    goal: int


def first_hit(errors: np.ndarray) -> np.ndarray:
    """Agent and block together within 20 px and the block within 20 degrees, at any step.

    errors: (n, T, 3) -> (n,) bool.
    """
    within = (errors[..., AGENT_AND_BLOCK] < 20) & (errors[..., DEGREES] < 20)
    return np.any(within, axis=1)


def strict(errors: np.ndarray) -> np.ndarray:
    """The block alone within 10 px and 10 degrees, three steps in a row: (n, T, 3) -> (n,)."""
    within = (errors[..., BLOCK] < 10) & (errors[..., DEGREES] < 10)
    return np.any(within[:, :-2] & within[:, 1:-1] & within[:, 2:], axis=1)


def chunk_end(errors: np.ndarray) -> np.ndarray:
    """As `first_hit`, but looked at only after every 25 steps (DINO-WM): (n, T, 3) -> (n,)."""
    return first_hit(errors[:, CHUNK - 1 :: CHUNK])


@dataclass(frozen=True)
class GoalProtocol:
    goal_offset: int
    """Steps from the start to the goal in the recording."""
    success: Callable[[np.ndarray], np.ndarray]


PROTOCOLS = {
    "first_hit": GoalProtocol(25, first_hit),
    "strict": GoalProtocol(25, strict),
    "chunk_end": GoalProtocol(25, chunk_end),
    "far": GoalProtocol(50, first_hit),
    "far_strict": GoalProtocol(50, strict),
}


def sample_pairs(
    dataset: EpisodeDataset, goal_offset: int, num_pairs: int, seed: int
) -> list[StartGoal]:
    """Draw pairs uniformly from all rows of held-out episodes that have a row `offset` later.

    Fewer than `count` where the recordings have no more.
    """
    episodes = np.array(dataset.episodes("test"), np.int64)
    starts = np.maximum(dataset.lengths[episodes] - goal_offset, 0)
    cumulative = np.cumsum(starts)
    total = int(starts.sum())
    rng = np.random.default_rng((seed, goal_offset))
    picked = np.sort(rng.choice(total, min(num_pairs, total), replace=False))
    episode_index = np.searchsorted(cumulative, picked, side="right")
    steps = picked - (cumulative - starts)[episode_index]
    return [
        StartGoal(seed, int(episodes[e]), int(step), int(step) + goal_offset)
        for e, step in zip(episode_index, steps, strict=True)
    ]


def pairs_as_dicts(pairs: list[StartGoal]) -> list[dict[str, int]]:
    """Give plain values, for the list that is saved beside the figures."""
    return [asdict(pair) for pair in pairs]


def errors_between(states: np.ndarray, goals: np.ndarray) -> np.ndarray:
    """Two (N, S) -> (N, 3): px of agent and block together, px of the block, its degrees."""
    angle = np.abs(angle_difference(states[:, 4], goals[:, 4]))
    difference = states[:, :4] - goals[:, :4]
    return np.stack(
        [
            np.linalg.norm(difference, axis=1),
            np.linalg.norm(difference[:, 2:], axis=1),
            np.rad2deg(angle),
        ],
        1,
    )


def run_pairs(
    policy: Policy,
    envs: VectorPushT,
    dataset: EpisodeDataset,
    pairs: list[StartGoal],
    budget: int = BUDGET,
    name: str = "goals",
) -> np.ndarray:
    """Play from every start towards its goal; give the errors after each step: (n, T, 3).

    A pair that has met all criteria is not played on; its last errors stay.
    """
    all_errors = []
    with tqdm(total=len(pairs) * budget, desc=name, leave=False, unit="step") as progress:
        for start in range(0, len(pairs), envs.num_envs):
            batch = pairs[start : start + envs.num_envs]
            errors = run_batch(policy, envs, dataset, batch, budget, progress)
            all_errors.append(errors)
    return np.concatenate(all_errors)


def run_batch(
    policy: Policy,
    envs: VectorPushT,
    dataset: EpisodeDataset,
    pairs: list[StartGoal],
    budget: int,
    progress: Any,
) -> np.ndarray:
    """Play at most N pairs at once: (n, T, 3)."""
    padded = pairs + pairs[:1] * (envs.num_envs - len(pairs))
    states = np.stack([_read_state(dataset, p.episode, p.start) for p in padded])
    prev_states = np.stack([_read_state(dataset, p.episode, max(p.start - 1, 0)) for p in padded])
    goals = np.stack([_read_state(dataset, p.episode, p.goal) for p in padded])
    velocities = (states - prev_states)[:, :2] * STEPS_PER_SECOND
    envs.reset(np.arange(envs.num_envs), states, velocities)
    active = np.arange(envs.num_envs) < len(pairs)
    errors = np.zeros((envs.num_envs, budget, 3))
    for step in range(budget):
        obs = Observation(
            envs.frames(active) if policy.needs_pixels else None, states, velocities, active
        )
        if step == 0:
            policy.reset(obs, _goal_observation(policy, dataset, padded, goals, active))
        prev_states = states
        states, _ = envs.step(policy.act(obs), active)
        velocities = (states - prev_states)[:, :2] * STEPS_PER_SECOND
        errors[:, step:] = errors_between(states, goals)[:, None]
        progress.update(int(active.sum()))
        errors_so_far = errors[:, : step + 1]
        active = active & ~(
            first_hit(errors_so_far) & strict(errors_so_far) & chunk_end(errors_so_far)
        )
        if not active.any():
            break
    return errors[: len(pairs)]


def summarize(success: np.ndarray, pairs: list[StartGoal]) -> dict[str, Any]:
    """Successes (n,) -> their share with Wilson's interval, and each seed's share."""
    low, high = wilson(int(success.sum()), len(success))
    seeds = np.array([pair.seed for pair in pairs])
    return {
        "success": float(success.mean()),
        "low": low,
        "high": high,
        "n": len(success),
        "success_by_seed": {str(s): float(success[seeds == s].mean()) for s in np.unique(seeds)},
    }


def _read_state(dataset: EpisodeDataset, episode: int, step: int) -> np.ndarray:
    return dataset.read(episode, "states", step, step + 1)[0].astype(np.float64)


def _goal_observation(
    policy: Policy,
    dataset: EpisodeDataset,
    pairs: list[StartGoal],
    goals: np.ndarray,
    active: np.ndarray,
) -> Observation:
    frames = None
    if policy.needs_pixels:
        images = [dataset.read(p.episode, "frames", p.goal, p.goal + 1)[0] for p in pairs]
        frames = np.stack(images).transpose(0, 3, 1, 2)
    return Observation(frames, goals, np.zeros((len(pairs), 2)), active)
