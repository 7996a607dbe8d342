"""Several environments that are stepped together, each on its own.

Letters: N environments, n of them in use.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from data.actions import ActionSpec
from data.gym.env_spec import EnvSpec
from data.gym.pixel_env import PixelEnv, StepResult


class EnvGroup(Protocol):
    """What recording and evaluation rely on.  Nothing is reset until `reset` is called: what an
    environment does after its episode has ended is never given."""

    num_envs: int
    actions: ActionSpec
    state_dim: int
    """Numbers that are observed next to the pixels; 0 for none."""
    max_episode_steps: int
    """Steps after which an episode is truncated; 0 where that is not known."""
    seeds_each: bool
    """Whether every episode has the seed that it was reset with, and so can be repeated."""

    def reset(self, seeds: Sequence[int]) -> list[StepResult]:
        """Start an episode from each of n <= N seeds."""
        ...

    def step(self, actions: np.ndarray, active: np.ndarray) -> list[StepResult | None]:
        """Take n actions, (n, A) or (n,); None where an environment is not `active`, (n,) bool."""
        ...

    def stored_action(self, action: Any) -> np.ndarray:
        """Turn an action of the environment's own into one of `actions`."""
        ...

    def close(self) -> None: ...


class SeparateEnvs:
    """Single environments, each reset and stepped where it has to be."""

    seeds_each = True

    def __init__(self, spec: EnvSpec, num_envs: int) -> None:
        self.num_envs = num_envs
        self.envs = [PixelEnv(spec) for _ in range(num_envs)]
        first = self.envs[0]
        self.actions, self.state_dim = first.actions, first.pixel_source.state_dim
        self.max_episode_steps = first.max_episode_steps

    def reset(self, seeds: Sequence[int]) -> list[StepResult]:
        return [env.reset(seed) for env, seed in zip(self.envs, seeds, strict=False)]

    def step(self, actions: np.ndarray, active: np.ndarray) -> list[StepResult | None]:
        return [
            env.step(action) if is_active else None
            for env, action, is_active in zip(self.envs, actions, active, strict=False)
        ]

    def stored_action(self, action: Any) -> np.ndarray:
        return self.envs[0].stored_action(action)

    def close(self) -> None:
        for env in self.envs:
            env.close()


def open_group(spec: EnvSpec, num_envs: int) -> EnvGroup:
    """Open `num_envs` environments; ValueError in one line where they cannot be."""
    if spec.vectorization_mode == "none":
        return SeparateEnvs(spec, num_envs)
    from data.gym.vector_group import open_vector_group

    return open_vector_group(spec, num_envs)
