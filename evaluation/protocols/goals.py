"""Goal reaching on Push-T: a start and a later state of the same held-out episode, and a budget.

The figures of different protocols are not comparable: `first_hit` is that of LeWorldModel and
stable-worldmodel, `chunk_end` that of DINO-WM; `strict`, `offset50` and `offset100` are harder.

Letters: n pairs, T steps, S numbers of a state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from data.pusht.simulator import STEPS_PER_SECOND, angle_difference, goal_of
from data.pusht.vector_pusht import VectorPushT
from data.shards.episode_dataset import EpisodeDataset
from evaluation.measures.intervals import wilson
from evaluation.protocols.policies import Policy
from evaluation.protocols.rollout import Starts, Trajectories, Watcher, play_episodes

AGENT_AND_BLOCK, BLOCK, DEGREES = 0, 1, 2  # the errors of a step, in this order
CHUNK = 25


@dataclass(frozen=True)
class StartGoal:
    """Where to start and what to reach: two steps of one episode of the dataset."""

    seed: int
    episode: int
    start: int
    goal: int


def first_hit(errors: np.ndarray) -> np.ndarray:
    """Test for agent and block together within 20 px and the block within 20 degrees, at any step.

    errors: (n, T, 3) -> (n,) bool.
    """
    within = (errors[..., AGENT_AND_BLOCK] < 20) & (errors[..., DEGREES] < 20)
    return np.any(within, axis=1)


def strict(errors: np.ndarray) -> np.ndarray:
    """Test for the block within 10 px and 10 degrees, three steps in a row: (n, T, 3) -> (n,)."""
    within = (errors[..., BLOCK] < 10) & (errors[..., DEGREES] < 10)
    return np.any(within[:, :-2] & within[:, 1:-1] & within[:, 2:], axis=1)


def chunk_end(errors: np.ndarray) -> np.ndarray:
    """Test as `first_hit`, but only after every 25 steps (DINO-WM): (n, T, 3) -> (n,)."""
    return first_hit(errors[:, CHUNK - 1 :: CHUNK])


@dataclass(frozen=True)
class GoalProtocol:
    goal_offset: int
    """Steps from the start to the goal in the episode."""
    success: Callable[[np.ndarray], np.ndarray]
    budget: int = 50
    """Steps that there are."""


PROTOCOLS = {
    "first_hit": GoalProtocol(25, first_hit),
    "strict": GoalProtocol(25, strict),
    "chunk_end": GoalProtocol(25, chunk_end),
    "offset50": GoalProtocol(50, first_hit),
    "offset50_strict": GoalProtocol(50, strict),
    "offset100": GoalProtocol(100, first_hit, budget=100),
    "offset100_strict": GoalProtocol(100, strict, budget=100),
}


def at_offset(goal_offset: int) -> GoalProtocol:
    """Give the first protocol of an offset: all of one have the same budget, and are measured in
    one go."""
    return next(p for p in PROTOCOLS.values() if p.goal_offset == goal_offset)


def sample_pairs(
    dataset: EpisodeDataset, goal_offset: int, num_pairs: int, seed: int
) -> list[StartGoal]:
    """Draw pairs uniformly from all steps of held-out episodes with one `goal_offset` steps later.

    Fewer than `num_pairs` where the dataset has no more.
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
    """Give plain values, for the list that is saved with the figures."""
    return [asdict(pair) for pair in pairs]


def errors_between(states: np.ndarray, goals: np.ndarray) -> np.ndarray:
    """Compare two (..., S): px of agent and block together, of the block, its degrees (..., 3)."""
    angle = np.abs(angle_difference(states[..., 4], goals[..., 4]))
    difference = states[..., :4] - goals[..., :4]
    both = np.linalg.norm(difference, axis=-1)
    return np.stack([both, np.linalg.norm(difference[..., 2:], axis=-1), np.rad2deg(angle)], -1)


@dataclass(frozen=True)
class PairGoals:
    """The goals of pairs, as a policy is given them."""

    dataset: EpisodeDataset
    pairs: list[StartGoal]
    states: np.ndarray  # (n, S)

    def frames(self, episodes: np.ndarray) -> np.ndarray:
        """Give the goals' frames, (m, 3, H, W) uint8, of the pairs at `episodes`, (m,)."""
        goals = [self.pairs[episode] for episode in episodes]
        images = [self.dataset.read(p.episode, "frames", p.goal, p.goal + 1)[0] for p in goals]
        return np.stack(images).transpose(0, 3, 1, 2)


def run_pairs(
    policy: Policy,
    envs: VectorPushT,
    dataset: EpisodeDataset,
    pairs: list[StartGoal],
    budget: int,
    name: str = "goals",
    watchers: Sequence[Watcher] = (),
) -> np.ndarray:
    """Play from every start towards its goal; give the errors after each step: (n, T, 3).

    An episode ends when all criteria are met; its last errors are repeated.
    """
    states = np.stack([_read_state(dataset, p.episode, p.start) for p in pairs])
    prev_states = np.stack([_read_state(dataset, p.episode, max(p.start - 1, 0)) for p in pairs])
    velocities = (states - prev_states)[:, :2] * STEPS_PER_SECOND
    starts = Starts(states, velocities, _task_goals(dataset, pairs))
    goals = np.stack([_read_state(dataset, p.episode, p.goal) for p in pairs])

    def is_done(episodes: np.ndarray, played: Trajectories) -> np.ndarray:
        errors = errors_between(played.states, goals[episodes, None])
        return first_hit(errors) & strict(errors) & chunk_end(errors)

    played = play_episodes(
        policy, envs, starts, budget, is_done, PairGoals(dataset, pairs, goals), name, watchers
    )
    return errors_between(played.states, goals[:, None])


def summarize(success: np.ndarray, pairs: list[StartGoal]) -> dict[str, Any]:
    """Give the share of successes (n,) with Wilson's interval, and each seed's share."""
    low, high = wilson(int(success.sum()), len(success))
    seeds = np.array([pair.seed for pair in pairs])
    return {
        "success": float(success.mean()),
        "low": low,
        "high": high,
        "n": len(success),
        "success_by_seed": {str(s): float(success[seeds == s].mean()) for s in np.unique(seeds)},
    }


def _task_goals(dataset: EpisodeDataset, pairs: list[StartGoal]) -> np.ndarray | None:
    """Give the task's goal in the episodes of pairs, (n, 3), where each has its own.

    It is drawn, whatever the pair's goal is.
    """
    notes = [dataset.notes[pair.episode] for pair in pairs]
    return np.stack([goal_of(note) for note in notes]) if "goal" in notes[0] else None


def _read_state(dataset: EpisodeDataset, episode: int, step: int) -> np.ndarray:
    return dataset.read(episode, "states", step, step + 1)[0].astype(np.float64)
