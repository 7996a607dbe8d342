"""Motions of a scene as a whole, which leave its physics as they are.

The plane has no direction, and the T is symmetric about its own axis: so an episode that is
mirrored, turned and shifted as a whole, its goal with it, is an episode of the same physics, as
long as nothing of it leaves the walls.  Rows are points (..., 2), block poses (..., 3) or states
(..., 5): units as in data/pusht/simulator.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from data.pusht.simulator import GOAL, WINDOW_SIZE

CENTER = np.array([WINDOW_SIZE, WINDOW_SIZE]) / 2
AGENT_RADIUS = 15.0
BLOCK_CORNERS = np.array([[-60.0, 0], [60, 0], [60, 30], [15, 120], [-15, 120], [-60, 30]])
"""Of the T at the pose (0, 0, 0)."""
WALL = 6.0
"""Pixels at each side that nothing can be in."""
TRIES = 100


@dataclass(frozen=True)
class Motion:
    """Mirror rows in the axis of the task's goal, turn them about the center, and shift them."""

    mirrored: bool = False
    angle: float = 0.0
    """Radians, from x to y."""
    shift: tuple[float, float] = (0.0, 0.0)

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        result = mirror(rows) if self.mirrored else rows.copy()
        if not self.angle and not any(self.shift):
            return result  # to the last digit
        sin, cos = np.sin(self.angle), np.cos(self.angle)
        for x in range(0, rows.shape[-1] - 1, 2):
            offset = result[..., x : x + 2] - CENTER
            turned = offset @ np.array([[cos, sin], [-sin, cos]])
            result[..., x : x + 2] = turned + CENTER + self.shift
        if rows.shape[-1] % 2:
            result[..., -1] = (result[..., -1] + self.angle) % (2 * np.pi)
        return result


def mirror(rows: np.ndarray) -> np.ndarray:
    """Mirror rows in the axis of the task's goal, x + y = 512, which leaves that goal in place."""
    result = rows.copy()
    for x in range(0, rows.shape[-1] - 1, 2):
        result[..., x], result[..., x + 1] = (WINDOW_SIZE - rows[..., i] for i in (x + 1, x))
    if rows.shape[-1] % 2:
        result[..., -1] = (2 * GOAL[2] - rows[..., -1]) % (2 * np.pi)
    return result


def random_motion(rng: np.random.Generator, states: np.ndarray, targets: np.ndarray) -> Motion:
    """Draw a motion after which an episode, (T, 5) and (T, 2), still lies within the walls.

    Any angle at which it fits, and any shift that leaves it there; a quarter turn where none was
    found.
    """
    hull = _outline(states, targets)
    for _ in range(TRIES):
        motion = Motion(bool(rng.uniform() < 0.5), rng.uniform(0, 2 * np.pi))
        moved = motion(hull)
        low, high = WALL - moved.min(0), WINDOW_SIZE - WALL - moved.max(0)
        if (low <= high).all():
            x, y = rng.uniform(low, high).tolist()
            return replace(motion, shift=(x, y))
    return Motion(bool(rng.uniform() < 0.5), int(rng.integers(4)) * np.pi / 2)


def _outline(states: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Points, (N, 2), around all that an episode has: targets, the agent, the block."""
    sides: Any = np.linspace(0, 2 * np.pi, 8, endpoint=False)
    circle = AGENT_RADIUS * np.stack([np.cos(sides), np.sin(sides)], 1)
    agent = states[:, None, :2] + circle
    sin, cos = np.sin(states[:, 4])[:, None], np.cos(states[:, 4])[:, None]
    x, y = BLOCK_CORNERS.T
    corners = np.stack([cos * x - sin * y, sin * x + cos * y], -1) + states[:, None, 2:4]
    return np.concatenate([targets, agent.reshape(-1, 2), corners.reshape(-1, 2)])
