"""Crafter (Hafner, arXiv:2109.06780) as a gymnasium environment; its own interface is older.

Importing this registers CrafterReward-v1 and CrafterNoReward-v1, the names that Crafter gives them.
"""

from __future__ import annotations

from typing import Any

import crafter  # type: ignore[import-not-found]
import gymnasium
import numpy as np
from gymnasium import spaces

SIDE = 64  # pixels of its own


class CrafterEnv(gymnasium.Env):
    """22 achievements, each rewarded once an episode, and a tenth for each point of health."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(self, reward: bool = True, render_mode: str | None = None, **kwargs: Any) -> None:
        self.render_mode = render_mode
        self._env: Any = crafter.Env(size=(SIDE, SIDE), reward=reward, seed=0, **kwargs)
        self.action_names: tuple[str, ...] = tuple(self._env.action_names)
        self.action_space = spaces.Discrete(len(self.action_names))
        self.observation_space = spaces.Box(0, 255, (SIDE, SIDE, 3), np.uint8)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:  # a world follows from the seed and the number of the episode
            self._env._seed, self._env._episode = seed, 0
        return self._env.reset(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        frame, reward, done, info = self._env.step(int(action))
        dead = info["discount"] == 0  # else the time is over
        return frame, float(reward), dead, bool(done) and not dead, info

    def render(self) -> np.ndarray:  # type: ignore[override]
        return self._env.render()


for _name, _reward in (("CrafterReward-v1", True), ("CrafterNoReward-v1", False)):
    gymnasium.register(_name, lambda reward=_reward, **kwargs: CrafterEnv(reward, **kwargs))
