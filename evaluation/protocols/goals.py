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
from data.pusht.vector_pusht import SimulatorPool
from data.shards import Recordings
from evaluation.measures.intervals import wilson
from evaluation.protocols.policies import Policy, View

AGENT_AND_BLOCK, BLOCK, DEGREES = 0, 1, 2  # the errors of a step, in this order
BUDGET = 50
CHUNK = 25


@dataclass(frozen=True)
class Pair:
    """Where to begin and what to reach: two steps of one episode of the recordings."""

    seed: int
    episode: int
    start: int
    goal: int


def first_hit(errors: np.ndarray) -> np.ndarray:
    """Agent and block together within 20 px and the block within 20 degrees, at any step.

    errors: (n, T, 3) -> (n,) bool.
    """
    near = (errors[..., AGENT_AND_BLOCK] < 20) & (errors[..., DEGREES] < 20)
    return np.any(near, axis=1)


def strict(errors: np.ndarray) -> np.ndarray:
    """The block alone within 10 px and 10 degrees, three steps in a row: (n, T, 3) -> (n,)."""
    near = (errors[..., BLOCK] < 10) & (errors[..., DEGREES] < 10)
    return np.any(near[:, :-2] & near[:, 1:-1] & near[:, 2:], axis=1)


def chunk_end(errors: np.ndarray) -> np.ndarray:
    """As `first_hit`, but looked at only after every 25 steps (DINO-WM): (n, T, 3) -> (n,)."""
    return first_hit(errors[:, CHUNK - 1 :: CHUNK])


@dataclass(frozen=True)
class GoalProtocol:
    offset: int
    """Steps from the start to the goal in the recording."""
    reached: Callable[[np.ndarray], np.ndarray]


PROTOCOLS = {
    "first_hit": GoalProtocol(25, first_hit),
    "strict": GoalProtocol(25, strict),
    "chunk_end": GoalProtocol(25, chunk_end),
    "far": GoalProtocol(50, first_hit),
    "far_strict": GoalProtocol(50, strict),
}


def make_pairs(recordings: Recordings, offset: int, count: int, seed: int) -> list[Pair]:
    """Draw pairs uniformly from all rows of held-out episodes that have a row `offset` later.

    Fewer than `count` where the recordings have no more.
    """
    episodes = np.array(recordings.episodes("test"), np.int64)
    starts = np.maximum(recordings.lengths[episodes] - offset, 0)
    until = np.cumsum(starts)
    total = int(starts.sum())
    random = np.random.default_rng((seed, offset))
    drawn = np.sort(random.choice(total, min(count, total), replace=False))
    which = np.searchsorted(until, drawn, side="right")
    steps = drawn - (until - starts)[which]
    return [
        Pair(seed, int(episodes[e]), int(step), int(step) + offset)
        for e, step in zip(which, steps, strict=True)
    ]


def pair_list(pairs: list[Pair]) -> list[dict[str, int]]:
    """Give plain values, for the list that is saved beside the figures."""
    return [asdict(pair) for pair in pairs]


def errors_between(states: np.ndarray, goals: np.ndarray) -> np.ndarray:
    """Two (N, S) -> (N, 3): px of agent and block together, px of the block, its degrees."""
    turn = np.abs(angle_difference(states[:, 4], goals[:, 4]))
    offset = states[:, :4] - goals[:, :4]
    return np.stack(
        [np.linalg.norm(offset, axis=1), np.linalg.norm(offset[:, 2:], axis=1), np.rad2deg(turn)], 1
    )


def run_pairs(
    policy: Policy,
    pool: SimulatorPool,
    recordings: Recordings,
    pairs: list[Pair],
    budget: int = BUDGET,
    name: str = "goals",
) -> np.ndarray:
    """Play from every start towards its goal; give the errors after each step: (n, T, 3).

    A pair that has met all criteria is not played on; its last errors stay.
    """
    parts = []
    with tqdm(total=len(pairs) * budget, desc=name, leave=False, unit="step") as bar:
        for first in range(0, len(pairs), pool.count):
            chunk = pairs[first : first + pool.count]
            errors = play(policy, pool, recordings, chunk, budget, bar)
            parts.append(errors)
    return np.concatenate(parts)


def play(
    policy: Policy,
    pool: SimulatorPool,
    recordings: Recordings,
    pairs: list[Pair],
    budget: int,
    bar: Any,
) -> np.ndarray:
    """Play at most N pairs at once: (n, T, 3)."""
    seats = pairs + pairs[:1] * (pool.count - len(pairs))
    states = np.stack([_state(recordings, p.episode, p.start) for p in seats])
    before = np.stack([_state(recordings, p.episode, max(p.start - 1, 0)) for p in seats])
    goals = np.stack([_state(recordings, p.episode, p.goal) for p in seats])
    velocities = (states - before)[:, :2] * STEPS_PER_SECOND
    pool.reset(np.arange(pool.count), states, velocities)
    active = np.arange(pool.count) < len(pairs)
    errors = np.zeros((pool.count, budget, 3))
    for step in range(budget):
        view = View(pool.frames(active) if policy.looks else None, states, velocities, active)
        if step == 0:
            policy.begin(view, _goal_view(policy, recordings, seats, goals, active))
        before = states
        states, _ = pool.step(policy.act(view), active)
        velocities = (states - before)[:, :2] * STEPS_PER_SECOND
        errors[:, step:] = errors_between(states, goals)[:, None]
        bar.update(int(active.sum()))
        so_far = errors[:, : step + 1]
        active = active & ~(first_hit(so_far) & strict(so_far) & chunk_end(so_far))
        if not active.any():
            break
    return errors[: len(pairs)]


def summary(reached: np.ndarray, pairs: list[Pair]) -> dict[str, Any]:
    """Successes (n,) -> their share with Wilson's interval, and each seed's share."""
    low, high = wilson(int(reached.sum()), len(reached))
    seeds = np.array([pair.seed for pair in pairs])
    return {
        "success": float(reached.mean()),
        "low": low,
        "high": high,
        "n": len(reached),
        "success_by_seed": {str(s): float(reached[seeds == s].mean()) for s in np.unique(seeds)},
    }


def _state(recordings: Recordings, episode: int, step: int) -> np.ndarray:
    return recordings.read(episode, "states", step, step + 1)[0].astype(np.float64)


def _goal_view(
    policy: Policy,
    recordings: Recordings,
    pairs: list[Pair],
    goals: np.ndarray,
    active: np.ndarray,
) -> View:
    frames = None
    if policy.looks:
        read = [recordings.read(p.episode, "frames", p.goal, p.goal + 1)[0] for p in pairs]
        frames = np.stack(read).transpose(0, 3, 1, 2)
    return View(frames, goals, np.zeros((len(pairs), 2)), active)
