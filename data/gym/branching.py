"""What other actions would have led to: an environment that is brought to steps of an episode.

Letters: T steps of an episode, K steps of a branch, S side of a frame.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from inspect import signature
from typing import Any

import numpy as np

from data.gym.env_spec import EnvSpec
from data.gym.pixel_env import PixelEnv, StepResult


@dataclass(frozen=True)
class Branch:
    """What actions led to from a step of an episode."""

    start: np.ndarray  # (S, S, 3) uint8, the frame there
    frames: np.ndarray  # (K, S, S, 3) uint8; after an end its last one
    alive: np.ndarray  # (K,) bool, frames that the episode reached


class BranchingEnv:
    """An environment whose episodes depend on their seed and actions alone.

    One that can be copied (ALE's `clone_state`) is led through the episode once.  All others are
    led to each step anew.
    """

    def __init__(self, spec: EnvSpec) -> None:
        self.env = PixelEnv(replace(spec, vectorization_mode="none", max_episode_steps=0))
        inner = self.env.env.unwrapped
        self.copies = hasattr(inner, "clone_state") and hasattr(inner, "restore_state")
        self._copy = partial(_copy, inner) if self.copies else None

    def branches(
        self,
        seed: int,
        actions: np.ndarray,
        steps: Sequence[int],
        others: Sequence[np.ndarray],
    ) -> Iterator[Branch]:
        """Take `others[i]`, (K,) or (K, A), in the place of the episode's actions, (T,) or (T, A),
        from step `steps[i]` on; steps in order."""
        done, result = 0, self.env.reset(seed)
        for step, other in zip(steps, others, strict=True):
            if not self.copies and done:
                done, result = 0, self.env.reset(seed)
            for action in actions[done:step]:
                result = self.env.step(action)
            done = step
            yield self._branch(result, other)

    def close(self) -> None:
        self.env.close()

    def _branch(self, start: StepResult, actions: np.ndarray) -> Branch:
        inner = self.env.env.unwrapped
        copy = None if self._copy is None else self._copy()
        frames, alive, result = [], [], start
        for action in actions:
            alive.append(not result.done)
            if not result.done:
                result = self.env.step(action)
            frames.append(result.frame)
        if self.copies:
            inner.restore_state(copy)  # type: ignore[attr-defined]
        return Branch(start.frame, np.stack(frames), np.array(alive))


def _copy(env: Any) -> Any:
    """Copy a state with its random numbers, which ALE leaves out unless it is asked: sticky actions
    draw some in every branch."""
    with_rng = "include_rng" in signature(env.clone_state).parameters
    return env.clone_state(include_rng=True) if with_rng else env.clone_state()
