"""A scripted policy: it brings the block to a pose by pushing it where that reduces the error most.

The pose error of the block is a vector (x, y, lever * angle). A push at a point of the outline
moves the block along the normal and rotates it by the torque (quasi-static: the simulator damps all
motion of the block). The policy takes the point whose push reduces the error most, less the cost of
travel; it goes around the block to that point, and pushes. It is a function of the state alone, so
a small network can clone it.
"""

from __future__ import annotations

import numpy as np

from data.pusht.simulator import GOAL, WINDOW_SIZE, angle_difference

RADIUS = 15.0  # of the agent
CENTER = np.array([0.0, 45.0])  # center of gravity, in the block's own frame
LEVER = 60.0  # pixels of error that a radian counts as
GYRATION = 3000.0  # moment of inertia over mass, pixels squared
DETOUR_RADIUS = 105.0  # distance from the center at which the block is never in the way


def _outline() -> tuple[np.ndarray, np.ndarray]:
    """Return contact points on the outline, and the normals into the block: (P, 2) each.

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
    """Policy from state to target. pose: (3,) x, y, angle that the block should reach."""

    def __init__(self, pose: np.ndarray = GOAL) -> None:
        self.pose = np.asarray(pose, dtype=np.float64)

    def act(self, state: np.ndarray) -> np.ndarray:
        """Return the target (2,), in pixels of the world, for a state (5,)."""
        agent, block_position, angle = state[:2], state[2:4], float(state[4])
        block_rotation = rotation(angle)
        center = block_position + block_rotation @ CENTER
        goal_center = self.pose[:2] + rotation(self.pose[2]) @ CENTER
        position_error = goal_center - center
        angle_error = float(angle_difference(self.pose[2], angle))
        if np.hypot(*position_error) < 1.5 and abs(angle_error) < np.deg2rad(1):
            return agent.copy()

        normals = NORMALS @ block_rotation.T
        # where the agent's center is when it touches
        contact_points = center + (_ARMS - RADIUS * NORMALS) @ block_rotation.T
        rates = _TORQUES / GYRATION  # radians per pixel of push
        error_along = normals @ position_error + LEVER**2 * rates * angle_error
        size = 1 + LEVER**2 * rates**2
        push_length = np.clip(error_along / size, 0, None)  # pixels to the smallest error
        error_reduction = push_length * np.sqrt(size)  # reduction of the error, as a length
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
        """Push the contact point when in front of it; otherwise approach it, around the block."""
        offset = agent - contact_point
        distance = -float(offset @ normal)  # from the face, outwards
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
    """Estimate the path length around the block, relative to its center: (2,), (P, 2) -> (P,)."""
    bearings = np.arctan2(contact_points[:, 1], contact_points[:, 0])
    angle = np.abs(angle_difference(bearings, np.arctan2(agent[1], agent[0])))
    return np.hypot(*(contact_points - agent).T) + 60 * np.clip(angle - 0.6, 0, None)


def _path_is_clear(a: np.ndarray, b: np.ndarray, center: np.ndarray) -> bool:
    """Return whether the straight line from a to b stays clear of the middle of the block."""
    path = b - a
    length = float(np.hypot(*path))
    if length < 12:
        return True
    fraction = float(np.clip((center - a) @ path / length**2, 0, 1))
    nearest = float(np.hypot(*(a + fraction * path - center)))
    return nearest > 85 or fraction in (0.0, 1.0)
