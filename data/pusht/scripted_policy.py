"""A scripted pusher: it brings the block to a pose by pushing it where that helps most.

The pose error of the block is a vector (x, y, lever * angle). A push at a point of the outline
moves the block along its normal and turns it by the torque (free space without inertia: the
simulator damps all motion of the block). Of all points, the pusher takes the one whose push takes
most of the error away, less what it costs to get there; it goes round the block to that point,
and then leans on it. All of it is a function of the state alone, so a small network can clone it.
"""

from __future__ import annotations

import numpy as np

from data.pusht.simulator import GOAL, WINDOW_SIZE, angle_difference

RADIUS = 15.0  # of the agent
CENTER = np.array([0.0, 45.0])  # of gravity, in the block's own frame
LEVER = 60.0  # pixels that a radian of error weighs
GYRATION = 3000.0  # moment of inertia over mass, pixels squared
DETOUR_RADIUS = 105.0  # distance from the centre at which nothing of the block is in the way


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
_ARMS = POINTS - CENTER
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
        agent, block_position, angle = state[:2], state[2:4], float(state[4])
        block_rotation = rotation(angle)
        center = block_position + block_rotation @ CENTER
        goal_center = self.pose[:2] + rotation(self.pose[2]) @ CENTER
        position_error = goal_center - center
        angle_error = float(angle_difference(self.pose[2], angle))
        if np.hypot(*position_error) < 1.5 and abs(angle_error) < np.deg2rad(1):
            return agent.copy()

        normals = NORMALS @ block_rotation.T
        contact_points = (
            center + (_ARMS - RADIUS * NORMALS) @ block_rotation.T
        )  # where the agent touches
        rates = _TORQUES / GYRATION  # radians a pixel of push
        error_along = normals @ position_error + LEVER**2 * rates * angle_error
        size = 1 + LEVER**2 * rates**2
        push_length = np.clip(error_along / size, 0, None)  # pixels to the least error
        error_reduction = push_length * np.sqrt(size)  # error that goes away, as a length
        travel = _travel_distance(agent - center, contact_points - center)
        outside = ((contact_points < 8) | (contact_points > WINDOW_SIZE - 8)).any(1)
        score = error_reduction - 0.12 * travel - 1e3 * outside - 1e3 * (push_length <= 0)
        best = int(score.argmax())
        return self._approach_or_push(
            agent, contact_points[best], normals[best], float(push_length[best]), center
        )

    def _approach_or_push(
        self,
        agent: np.ndarray,
        contact_point: np.ndarray,
        normal: np.ndarray,
        push_length: float,
        center: np.ndarray,
    ) -> np.ndarray:
        """Lean on the point when before it; else go to a place before it, round the block."""
        offset = agent - contact_point
        distance = -float(offset @ normal)  # how far before the face
        lateral_offset = float(abs(offset[0] * normal[1] - offset[1] * normal[0]))
        if lateral_offset < 6 and -6 < distance < 40:
            return np.clip(contact_point + normal * (min(push_length, 35.0) + 2), 0, WINDOW_SIZE)
        approach_point = contact_point - normal * 18
        if _path_is_clear(agent, approach_point, center) or (lateral_offset < 14 and distance > 0):
            return np.clip(approach_point, 0, WINDOW_SIZE)
        around = agent - center
        wanted = approach_point - center
        here = np.arctan2(around[1], around[0])
        gap = float(angle_difference(np.arctan2(wanted[1], wanted[0]), here))
        bearing = here + np.sign(gap) * min(abs(gap), 0.7)
        target = center + DETOUR_RADIUS * np.array([np.cos(bearing), np.sin(bearing)])
        if ((target < 10) | (target > WINDOW_SIZE - 10)).any():
            target = np.clip(target, 10, WINDOW_SIZE - 10)
        return target


def _travel_distance(agent: np.ndarray, contact_points: np.ndarray) -> np.ndarray:
    """Length of the way round the block, roughly; from its centre: (2,), (P, 2) -> (P,)."""
    bearings = np.arctan2(contact_points[:, 1], contact_points[:, 0])
    angle = np.abs(angle_difference(bearings, np.arctan2(agent[1], agent[0])))
    return np.hypot(*(contact_points - agent).T) + 60 * np.clip(angle - 0.6, 0, None)


def _path_is_clear(a: np.ndarray, b: np.ndarray, center: np.ndarray) -> bool:
    """The straight way from a to b keeps away from the middle of the block."""
    path = b - a
    length = float(np.hypot(*path))
    if length < 12:
        return True
    fraction = float(np.clip((center - a) @ path / length**2, 0, 1))
    nearest = float(np.hypot(*(a + fraction * path - center)))
    return nearest > 85 or fraction in (0.0, 1.0)
