"""A scripted pusher: it brings the block to a pose by pushing it where that helps most.

The pose error of the block is a vector (x, y, lever * angle). A push at a point of the outline
moves the block along its normal and turns it by the torque (free space without inertia: the
simulator damps all motion of the block). Of all points, the pusher takes the one whose push takes
most of the error away, less what it costs to get there; it goes round the block to that point,
and then leans on it. All of it is a function of the state alone, so a small network can clone it.
"""

from __future__ import annotations

import numpy as np

from data.pusht.simulator import GOAL, WORLD, angle_difference

RADIUS = 15.0  # of the agent
CENTRE = np.array([0.0, 45.0])  # of gravity, in the block's own frame
LEVER = 60.0  # pixels that a radian of error weighs
GYRATION = 3000.0  # moment of inertia over mass, pixels squared
ROUND = 105.0  # distance from the centre at which nothing of the block is in the way


def _outline() -> tuple[np.ndarray, np.ndarray]:
    """Points where the agent can lean on, and the normals into the block: (P, 2) each.

    The block's frame: the bar is x -60..60, y 0..30, the stem x -15..15, y 30..120. Points nearer
    than the agent's radius to an inner corner cannot be reached.
    """
    faces = []
    for x in np.arange(-55, 56, 10.0):
        faces.append(((x, 0.0), (0.0, 1.0)))
    for y in (8.0, 15.0, 22.0):
        faces += [((60.0, y), (-1.0, 0.0)), ((-60.0, y), (1.0, 0.0))]
    for x in (34.0, 40.0, 46.0, 52.0, 57.0):
        faces += [((x, 30.0), (0.0, -1.0)), ((-x, 30.0), (0.0, -1.0))]
    for y in np.arange(50, 118, 8.0):
        faces += [((15.0, y), (-1.0, 0.0)), ((-15.0, y), (1.0, 0.0))]
    for x in (-8.0, 0.0, 8.0):
        faces.append(((x, 120.0), (0.0, -1.0)))
    points, normals = zip(*faces, strict=True)
    return np.array(points), np.array(normals)


POINTS, NORMALS = _outline()
_ARMS = POINTS - CENTRE
_TORQUES = _ARMS[:, 0] * NORMALS[:, 1] - _ARMS[:, 1] * NORMALS[:, 0]


def rotation(angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s], [s, c]])


class ScriptedPolicy:
    """State to the agent's target. `pose` is where the block should go: x, y, angle."""

    def __init__(self, pose: np.ndarray = GOAL) -> None:
        self.pose = np.asarray(pose, dtype=np.float64)

    def act(self, state: np.ndarray) -> np.ndarray:
        """(5,) state -> (2,) target in pixels of the world."""
        agent, place, angle = state[:2], state[2:4], float(state[4])
        turn = rotation(angle)
        centre = place + turn @ CENTRE
        goal_centre = self.pose[:2] + rotation(self.pose[2]) @ CENTRE
        shift = goal_centre - centre
        twist = float(angle_difference(self.pose[2], angle))
        if np.hypot(*shift) < 1.5 and abs(twist) < np.deg2rad(1):
            return agent.copy()

        normals = NORMALS @ turn.T
        leans = centre + (_ARMS - RADIUS * NORMALS) @ turn.T  # where the agent touches
        rates = _TORQUES / GYRATION  # radians a pixel of push
        along = normals @ shift + LEVER**2 * rates * twist
        size = 1 + LEVER**2 * rates**2
        push = np.clip(along / size, 0, None)  # pixels to the least error
        gain = push * np.sqrt(size)  # error that goes away, as a length
        travel = _travel(agent - centre, leans - centre)
        outside = ((leans < 8) | (leans > WORLD - 8)).any(1)
        worth = gain - 0.12 * travel - 1e3 * outside - 1e3 * (push <= 0)
        best = int(worth.argmax())
        return self._towards(agent, leans[best], normals[best], float(push[best]), centre)

    def _towards(
        self,
        agent: np.ndarray,
        lean: np.ndarray,
        normal: np.ndarray,
        push: float,
        centre: np.ndarray,
    ) -> np.ndarray:
        """Lean on the point when before it; else go to a place before it, round the block."""
        offset = agent - lean
        behind = -float(offset @ normal)  # how far before the face
        aside = float(abs(offset[0] * normal[1] - offset[1] * normal[0]))
        if aside < 6 and -6 < behind < 40:
            return np.clip(lean + normal * (min(push, 35.0) + 2), 0, WORLD)
        ready = lean - normal * 18
        if _clear(agent, ready, centre) or (aside < 14 and behind > 0):
            return np.clip(ready, 0, WORLD)
        around = agent - centre
        wanted = ready - centre
        here = np.arctan2(around[1], around[0])
        gap = float(angle_difference(np.arctan2(wanted[1], wanted[0]), here))
        bearing = here + np.sign(gap) * min(abs(gap), 0.7)
        target = centre + ROUND * np.array([np.cos(bearing), np.sin(bearing)])
        if ((target < 10) | (target > WORLD - 10)).any():
            target = np.clip(target, 10, WORLD - 10)
        return target


def _travel(agent: np.ndarray, leans: np.ndarray) -> np.ndarray:
    """Length of the way round the block, roughly; from its centre: (2,), (P, 2) -> (P,)."""
    bearings = np.arctan2(leans[:, 1], leans[:, 0])
    turn = np.abs(angle_difference(bearings, np.arctan2(agent[1], agent[0])))
    return np.hypot(*(leans - agent).T) + 60 * np.clip(turn - 0.6, 0, None)


def _clear(a: np.ndarray, b: np.ndarray, centre: np.ndarray) -> bool:
    """The straight way from a to b keeps away from the middle of the block."""
    way = b - a
    length = float(np.hypot(*way))
    if length < 12:
        return True
    share = float(np.clip((centre - a) @ way / length**2, 0, 1))
    nearest = float(np.hypot(*(a + share * way - centre)))
    return nearest > 85 or share in (0.0, 1.0)
