"""Record whole episodes of several environments at a time.

Letters: n episodes that begin together, T frames, A numbers of an action, D numbers of a state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from data.actions import ActionSpec
from data.gym.env_group import EnvGroup
from data.gym.pixel_env import StepResult
from data.gym.recording_policies import RecordingPolicy
from data.shards.episodes import Episode


class Recorder:
    """Collects the steps of one episode."""

    def __init__(self, first: StepResult, seed: int) -> None:
        self.seed, self.results = seed, [first]
        self.actions: list[np.ndarray] = []

    def add(self, action: np.ndarray, result: StepResult) -> None:
        """Append an action and what it led to."""
        self.actions.append(np.array(action))
        self.results.append(result)

    @property
    def steps(self) -> int:
        return len(self.actions)

    @property
    def cut(self) -> bool:
        """Whether it was cut by the number of steps that were wanted."""
        return not self.results[-1].done

    def to_episode(self, spec: ActionSpec, source: int) -> Episode:
        """Return the episode; its last action leads nowhere and repeats the one before it.

        One that was cut before its end counts as truncated.
        """
        results = self.results
        dtype = np.int64 if spec.kind == "discrete" else np.float32
        terminals = np.array([result.terminated for result in results])
        truncations = np.array([result.truncated for result in results])
        truncations[-1] |= not terminals[-1]
        lives = [result.lives for result in results]
        states = [result.state for result in results if result.state is not None]
        return Episode(
            frames=np.stack([result.frame for result in results]),
            actions=np.array([*self.actions, self.actions[-1]], dtype),
            source=source,
            rewards=np.array([result.reward for result in results], np.float32),
            terminals=terminals,
            truncations=truncations,
            lives=None if None in lives else np.array(lives, np.int32),
            states=np.stack(states).astype(np.float32) if states else None,
        )


def play_together(
    envs: EnvGroup, policy: RecordingPolicy, seeds: Sequence[int], max_steps: int = 0
) -> Iterator[tuple[int, np.ndarray | None, StepResult]]:
    """Play an episode from each of n <= N seeds, all begun at once, until every one has ended.

    Gives the number of the episode, the action, and what it led to; first each episode's reset,
    with no action.  max_steps: of all together, after which they are cut; 0 is none.
    """
    results = envs.reset(seeds)
    for number, result in enumerate(results):
        yield number, None, result
    policy.reset(results, seeds)
    active, left = np.ones(len(seeds), bool), max_steps or np.inf
    while active.any():
        if left < active.sum():  # the last of them have had their steps
            active[np.flatnonzero(active)[int(left) :]] = False
            if not active.any():
                return
        actions = policy.act(results, active)
        left -= active.sum()
        for number, result in enumerate(envs.step(actions, active)):
            if result is not None and active[number]:
                results[number], active[number] = result, not result.done
                yield number, actions[number], result


def record_episodes(
    envs: EnvGroup, policy: RecordingPolicy, seeds: Callable[[int], int], num_episodes: int
) -> list[Recorder]:
    """Record `num_episodes` whole episodes; seeds: of each, by its number."""
    recorders: list[Recorder] = []
    while len(recorders) < num_episodes:
        count = min(envs.num_envs, num_episodes - len(recorders))
        recorders += _record(envs, policy, seeds, len(recorders), count)
    return recorders


def record_steps(
    envs: EnvGroup, policy: RecordingPolicy, seeds: Callable[[int], int], num_steps: int
) -> list[Recorder]:
    """Record episodes of `num_steps` steps together; those that run at the end are cut there.

    No more are begun at once than can be expected to end.
    """
    recorders: list[Recorder] = []
    begun = done = 0
    while done < num_steps:
        left = num_steps - done
        longest = envs.max_episode_steps or num_steps
        expected = left * begun // done if done else left // longest
        count = max(1, min(envs.num_envs, expected))
        made = _record(envs, policy, seeds, begun, count, left)
        begun, done = begun + count, done + sum(recorder.steps for recorder in made)
        recorders += [recorder for recorder in made if recorder.steps]
    return recorders


def _record(
    envs: EnvGroup,
    policy: RecordingPolicy,
    seeds: Callable[[int], int],
    first: int,
    count: int,
    max_steps: int = 0,
) -> list[Recorder]:
    chosen = [seeds(number) for number in range(first, first + count)]
    recorders: list[Recorder] = []
    for number, action, result in play_together(envs, policy, chosen, max_steps):
        if action is None:
            recorders.append(Recorder(result, chosen[number]))
        else:
            recorders[number].add(action, result)
    return recorders
