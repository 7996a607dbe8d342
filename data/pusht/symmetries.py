"""The eight symmetries of the square world: quarter turns about its center, and each mirrored.

The T is symmetric about its own axis.  So an episode that is turned and mirrored as a whole, its
goal with it, is an episode of the same physics; only the walls lie a pixel off (gym-pusht's are at
5 and 506 of 512).  Rows are points (..., 2), block poses (..., 3) or states (..., 5): units as in
data/pusht/simulator.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from data.pusht.simulator import WINDOW_SIZE

NUM_SYMMETRIES = 8
MIRRORED = 4  # the first of the mirrored ones: no turn


def transform(rows: np.ndarray, symmetry: int) -> np.ndarray:
    """Mirror rows if `symmetry` is 4 or more, then turn them by symmetry % 4 quarters."""
    return turn(mirror(rows) if symmetry >= MIRRORED else rows, symmetry % MIRRORED)


def mirror(rows: np.ndarray) -> np.ndarray:
    """Mirror rows in the axis of the task's goal, x + y = 512, which leaves that goal in place."""
    return _map(rows, lambda x, y: (WINDOW_SIZE - y, WINDOW_SIZE - x), lambda a: np.pi / 2 - a)


def turn(rows: np.ndarray, quarters: int) -> np.ndarray:
    """Turn rows about the center, by `quarters` of a turn from x to y."""
    for _ in range(quarters % 4):
        rows = _map(rows, lambda x, y: (WINDOW_SIZE - y, x), lambda a: a + np.pi / 2)
    return rows


def _map(
    rows: np.ndarray,
    of_point: Callable[[Any, Any], tuple[Any, Any]],
    of_angle: Callable[[Any], Any],
) -> np.ndarray:
    result, size = rows.copy(), rows.shape[-1]
    for x in range(0, size - 1, 2):
        result[..., x], result[..., x + 1] = of_point(rows[..., x], rows[..., x + 1])
    if size % 2:
        result[..., -1] = of_angle(rows[..., -1]) % (2 * np.pi)
    return result
