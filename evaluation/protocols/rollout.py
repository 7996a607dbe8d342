"""Play a policy in many simulators at a time, each episode from its own start.

Letters: E episodes, N simulators, n episodes of a batch, T steps, S numbers of a state.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from tqdm import tqdm

from data.pusht.simulator import STEPS_PER_SECOND
from data.pusht.vector_pusht import VectorPushT
from evaluation.protocols.policies import Observation, Policy
from evaluation.protocols.record_video import RecordVideo


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
    recorder: RecordVideo | None = None,
) -> Trajectories:
    """Play an episode from each start, N at a time, each until it is done or for `num_steps`.

    recorder: is given the frames of the first N episodes.
    """
    batches = []
    with tqdm(total=len(starts) * num_steps, desc=name, leave=False, unit="step") as progress:
        for first in range(0, len(starts), envs.num_envs):
            episodes = np.arange(first, min(first + envs.num_envs, len(starts)))
            batches.append(
                _play_batch(
                    policy, envs, starts, num_steps, is_done, goals, episodes, progress,
                    recorder if first == 0 else None,
                )
            )  # fmt: skip
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
    recorder: RecordVideo | None,
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
    if recorder is not None and goal is not None and goal.frames is not None:
        recorder.add(goal.frames)
    for step in range(num_steps):
        frames = envs.frames(stepped) if policy.needs_pixels or recorder is not None else None
        if recorder is not None and frames is not None:
            recorder.add(frames)
        obs = Observation(frames, states, velocities, active)
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
    if recorder is not None:
        recorder.add(envs.frames(stepped))  # what the last step led to
    return Trajectories(played.states[:count], played.coverages[:count])


def _goal_observation(
    policy: Policy, goals: Goals | None, episodes: np.ndarray, active: np.ndarray
) -> Observation | None:
    if goals is None:
        return None
    frames = goals.frames(episodes) if policy.needs_pixels else None
    return Observation(frames, goals.states[episodes], np.zeros((len(episodes), 2)), active)
