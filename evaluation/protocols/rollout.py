"""Play a policy in many simulators at a time, each episode from its own start.

Letters: E episodes, N simulators, n episodes of a batch, T steps, S numbers of a state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from tqdm import tqdm

from data.pusht.simulator import STEPS_PER_SECOND
from data.pusht.vector_pusht import VectorPushT
from evaluation.protocols.policies import Observation, Policy


@dataclass(frozen=True)
class Starts:
    """Where episodes start."""

    states: np.ndarray  # (E, S)
    velocities: np.ndarray  # (E, 2) of the agent, units of the world per second
    task_goals: np.ndarray | None = None
    """(E, 3) poses that the task has and that are drawn, if not those of the simulators."""

    def __len__(self) -> int:
        return len(self.states)


class Goals(Protocol):
    """What episodes have to reach."""

    @property
    def states(self) -> np.ndarray:
        """(E, S)"""
        ...

    def frames(self, episodes: np.ndarray) -> np.ndarray:
        """Give the goals' frames, (n, 3, H, W) uint8, of `episodes`, (n,)."""
        ...


class Watcher(Protocol):
    """Looks at what is played, N episodes at a time."""

    def begin(self, episodes: np.ndarray, goals: np.ndarray | None) -> None:
        """Begin `episodes`, (n,), with n <= N; goals: their frames, (N, 3, H, W) uint8."""
        ...

    def add(self, frames: np.ndarray) -> None:
        """Look at (N, 3, H, W) uint8: the starts, then what each step led to; an episode that has
        ended stays at its last frame."""
        ...


@dataclass(frozen=True)
class Trajectories:
    """States and coverages after each step; an episode that has ended repeats its last ones."""

    states: np.ndarray  # (E, T, S)
    coverages: np.ndarray  # (E, T)

    def up_to(self, step: int) -> Trajectories:
        return Trajectories(self.states[:, :step], self.coverages[:, :step])


IsDone = Callable[[np.ndarray, Trajectories], np.ndarray]
"""Episodes, (n,), and their trajectories so far -> (n,) bool: nothing more is to be measured."""


def play_episodes(
    policy: Policy,
    envs: VectorPushT,
    starts: Starts,
    num_steps: int,
    is_done: IsDone,
    goals: Goals | None = None,
    name: str = "episodes",
    watchers: Sequence[Watcher] = (),
) -> Trajectories:
    """Play an episode from each start, N at a time, each until it is done or for `num_steps`."""
    batches = []
    with tqdm(total=len(starts) * num_steps, desc=name, leave=False, unit="step") as progress:
        for first in range(0, len(starts), envs.num_envs):
            episodes = np.arange(first, min(first + envs.num_envs, len(starts)))
            batches.append(
                _play_batch(
                    policy, envs, starts, num_steps, is_done, goals, episodes, progress, watchers
                )
            )
    return Trajectories(
        np.concatenate([batch.states for batch in batches]),
        np.concatenate([batch.coverages for batch in batches]),
    )


def _play_batch(
    policy: Policy,
    envs: VectorPushT,
    starts: Starts,
    num_steps: int,
    is_done: IsDone,
    goals: Goals | None,
    episodes: np.ndarray,
    progress: tqdm,
    watchers: Sequence[Watcher],
) -> Trajectories:
    """Play `episodes`, (n,) with n <= N; simulators without one stand at the first one's start."""
    count, num_envs = len(episodes), envs.num_envs
    episodes = np.concatenate([episodes, np.repeat(episodes[:1], num_envs - count)])
    stepped = active = np.arange(num_envs) < count
    states, velocities = starts.states[episodes], starts.velocities[episodes]
    task_goals = None if starts.task_goals is None else starts.task_goals[episodes]
    envs.reset(np.arange(num_envs), states, velocities, task_goals)
    played = Trajectories(
        np.zeros((num_envs, num_steps, states.shape[1])), np.zeros((num_envs, num_steps))
    )
    goal = _goal_observation(policy, goals, episodes, active)
    for watcher in watchers:
        watcher.begin(episodes[:count], None if goal is None else goal.frames)
    for step in range(num_steps):
        frames = envs.frames(stepped) if policy.needs_pixels or watchers else None
        _show(watchers, frames)
        obs = Observation(frames, states, velocities, active, task_goals)
        if step == 0:
            policy.reset(obs, goal)
        prev_states = states
        states, coverages = envs.step(policy.act(obs), active)
        velocities = (states - prev_states)[:, :2] * STEPS_PER_SECOND
        played.states[:, step:] = states[:, None]
        played.coverages[:, step:] = coverages[:, None]
        progress.update(int(active.sum()))
        stepped, active = active, active & ~is_done(episodes, played.up_to(step + 1))
        if not active.any():
            break
    _show(watchers, envs.frames(stepped) if watchers else None)  # what the last step led to
    return Trajectories(played.states[:count], played.coverages[:count])


def _show(watchers: Sequence[Watcher], frames: np.ndarray | None) -> None:
    if frames is not None:
        for watcher in watchers:
            watcher.add(frames)


def _goal_observation(
    policy: Policy, goals: Goals | None, episodes: np.ndarray, active: np.ndarray
) -> Observation | None:
    if goals is None:
        return None
    frames = goals.frames(episodes) if policy.needs_pixels else None
    return Observation(frames, goals.states[episodes], np.zeros((len(episodes), 2)), active)
