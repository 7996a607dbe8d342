"""Where human demonstrations leave the block, and whether that is their goal."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data.pusht.demo_data import load_demos
from data.pusht.simulator import angle_difference
from data.pusht.task_goal import Goal, as_pose

FAR_PIXELS, FAR_DEGREES = 40, 30  # from the goal, where it is hardly what was meant


def describe_ends(path: Path, goal: Goal | None) -> str:
    """Say where the demonstrations leave the block, and warn where that is not the goal."""
    demos = load_demos(path)
    poses = demos.states[demos.episode_ends - 1, 2:].astype(np.float64)
    x, y = np.median(poses[:, :2], axis=0)
    mean_angle = np.angle(np.exp(1j * poses[:, 2]).mean())
    angle = mean_angle + np.median(angle_difference(poses[:, 2], mean_angle))
    pose = f"{x:.0f} {y:.0f} {np.rad2deg(angle) % 360:.0f}"
    pixels, degrees = _distance(poses, as_pose(goal))
    line = (
        f"the demonstrations end with the block at {pose} (x, y, degrees), {pixels:.0f} pixels and "
        f"{degrees:.0f} degrees from the goal (medians)"
    )
    if not _is_far(pixels, degrees):
        return line
    if _is_far(*_distance(poses, np.array([x, y, angle]))):
        return f"warning: {line}; they have no goal in common, so rewards say little of them"
    return (
        f"warning: {line}; if that is their goal, frames and rewards need --goal {pose}, and "
        f"--restart"
    )


def _distance(poses: np.ndarray, goal: np.ndarray) -> tuple[float, float]:
    """Return the median distances of poses (E, 3) from one, in pixels and degrees."""
    pixels = np.linalg.norm(poses[:, :2] - goal[:2], axis=1)
    degrees = np.rad2deg(np.abs(angle_difference(poses[:, 2], goal[2])))
    return float(np.median(pixels)), float(np.median(degrees))


def _is_far(pixels: float, degrees: float) -> bool:
    return pixels > FAR_PIXELS or degrees > FAR_DEGREES
