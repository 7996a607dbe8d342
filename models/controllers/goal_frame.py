"""A planar state as it is seen from a goal.

What a task costs depends on where the block is in relation to its goal, wherever that lies.  So
states towards any goal are moved as a whole, by the rigid motion that brings the goal to the pose
it had where the task was learned (canonicalization: Kaba et al., arXiv:2211.06489).

Letters: B states, S numbers of a state, F columns of it: angles as sine and cosine, T points.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class GoalFrame:
    """Knows which numbers of a state are places and angles of the plane, by their names: `NAME_x`
    and `NAME_y`, and `NAME_angle` of what turns.  The goal is the pose of the only thing that does.
    """

    def __init__(self, state_names: Sequence[str], home: Sequence[float]) -> None:
        """home: x, y, angle of the goal that states are moved to."""
        self.home = tuple(home)
        self.columns = [n for name in state_names for n in _columns(name)]
        bodies = [n.removesuffix("_x") for n in state_names if n.endswith("_x")]
        bodies = [b for b in bodies if f"{b}_y" in state_names]
        turning = [b for b in bodies if f"{b}_angle" in state_names]
        self.body = turning[0] if len(turning) == 1 else None
        """Whose pose the goal is; None where the names tell of none, or of several."""
        pairs = [(f"{b}_x", f"{b}_y") for b in bodies]
        self.places = [self._find(pair) for pair in pairs]
        self.angles = [self._find((f"sin {b}_angle", f"cos {b}_angle")) for b in turning]

    @property
    def is_known(self) -> bool:
        """States can be moved: a goal's pose has a meaning, and there is one to move it to."""
        return self.body is not None and len(self.home) == 3

    def move(self, columns: Tensor, goal: Tensor) -> Tensor:
        """Move states (B, F), in their own units, with goals (B, 3): to where the goal is home."""
        moved = list(columns.unbind(-1))
        sin, cos = self._turn(goal)
        for x, y in self.places:
            place = torch.stack([columns[:, x], columns[:, y]], -1)[:, None]
            moved[x], moved[y] = self.to_home(place, goal)[:, 0].unbind(-1)
        for s, c in self.angles:
            moved[s] = columns[:, s] * cos + columns[:, c] * sin
            moved[c] = columns[:, c] * cos - columns[:, s] * sin
        return torch.stack(moved, -1)

    def to_home(self, points: Tensor, goal: Tensor) -> Tensor:
        """Move points (B, T, 2) with goals (B, 3) to where the goal is home."""
        sin, cos = (value[:, None] for value in self._turn(goal))
        return _shift(_rotate(points - goal[:, None, :2], sin, cos), self.home[0], self.home[1])

    def from_home(self, points: Tensor, goal: Tensor) -> Tensor:
        """Move points (B, T, 2) back to goals (B, 3)."""
        sin, cos = (value[:, None] for value in self._turn(goal))
        from_there = _shift(points, -self.home[0], -self.home[1])
        return _rotate(from_there, -sin, cos) + goal[:, None, :2]

    def pose(self, columns: Tensor) -> Tensor:
        """The pose of what turns: (B, F) -> (B, 3)."""
        x, y = self._find((f"{self.body}_x", f"{self.body}_y"))
        sin, cos = self._find((f"sin {self.body}_angle", f"cos {self.body}_angle"))
        angle = torch.atan2(columns[:, sin], columns[:, cos])
        return torch.stack([columns[:, x], columns[:, y], angle], -1)

    def other_places(self, columns: Tensor) -> Tensor:
        """Where all else is: (B, F) -> (B, T, 2); there has to be something."""
        own = self._find((f"{self.body}_x", f"{self.body}_y"))
        others = [column for pair in self.places if pair != own for column in pair]
        return torch.stack([columns[:, at] for at in others], -1).unflatten(-1, (-1, 2))

    def _turn(self, goal: Tensor) -> tuple[Tensor, Tensor]:
        """Sine and cosine of the angle from a goal to home: (B,) each."""
        angle = self.home[2] - goal[:, 2]
        return angle.sin(), angle.cos()

    def _find(self, names: tuple[str, str]) -> tuple[int, int]:
        return self.columns.index(names[0]), self.columns.index(names[1])


def as_columns(states: Tensor, is_angle: Sequence[bool]) -> Tensor:
    """States (B, S) -> (B, F): angles as sine and cosine."""
    columns = []
    for column, angle in zip(states.float().unbind(-1), is_angle, strict=True):
        columns += [column.sin(), column.cos()] if angle else [column]
    return torch.stack(columns, -1)


def goal_poses(goal: Tensor | None) -> Tensor | None:
    """Poses of goals, (B, 3), among what a planner may be given: goals as latents have none."""
    return goal if goal is not None and goal.ndim == 2 else None


def _columns(name: str) -> list[str]:
    return [f"sin {name}", f"cos {name}"] if name.endswith("angle") else [name]


def _shift(points: Tensor, x: float, y: float) -> Tensor:
    """By plain numbers: a tensor made of them could not be captured in a CUDA graph."""
    return torch.stack([points[..., 0] + x, points[..., 1] + y], -1)


def _rotate(points: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
    x, y = points.unbind(-1)
    return torch.stack([cos * x - sin * y, sin * x + cos * y], -1)
