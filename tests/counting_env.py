"""A gymnasium environment that counts its steps in its pixels, so that a shifted one is seen."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

SIDE = 16
ACTIONS = 3


class CountingEnv(gymnasium.Env):
    """A pixel's red is the episode's step, its green the last action plus 1, its blue drawn for
    the episode.  Episodes have 3 to 7 steps, by their seed; even numbers end by a time limit."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None, drawn: bool = False) -> None:
        """drawn: observe two numbers, and give pixels only where they are drawn."""
        self.render_mode, self.drawn = render_mode, drawn
        self.action_space = spaces.Discrete(ACTIONS)
        image = spaces.Box(0, 255, (SIDE, SIDE, 3), np.uint8)
        self.observation_space = spaces.Box(-1e3, 1e3, (2,), np.float32) if drawn else image
        self.episode, self.step_count, self.last = -1, 0, -1

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.step_count, self.last = 0, -1
        self.episode = int(self.np_random.integers(256))
        self.length = int(self.np_random.integers(3, 8))
        return self._observe(), {"lives": 3}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        assert self.action_space.contains(action)
        self.step_count, self.last = self.step_count + 1, int(action)
        ends = self.step_count >= self.length
        by_time = self.length % 2 == 0
        lives = 3 - (self.step_count >= 2)
        reward = float(self.step_count)
        return self._observe(), reward, ends and not by_time, ends and by_time, {"lives": lives}

    def render(self) -> np.ndarray:  # type: ignore[override]
        pixels = (self.step_count, self.last + 1, self.episode)
        return np.full((SIDE, SIDE, 3), pixels, np.uint8)

    def _observe(self) -> np.ndarray:
        if self.drawn:
            return np.array([self.step_count, self.last], np.float32)
        return self.render()


gymnasium.register("Counting-v0", lambda **kwargs: CountingEnv(**kwargs))


def by_count(observation: np.ndarray) -> int:
    """A policy of one's own: the action follows from the observed step."""
    return int(observation.flat[0]) % ACTIONS


class Remembers:
    """A policy that counts its own calls, anew in each episode."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, observation: np.ndarray) -> int:
        self.calls += 1
        return (self.calls - 1) % ACTIONS


def leaves(observation: Any) -> int:
    """A policy that ends the program."""
    raise SystemExit("enough")
