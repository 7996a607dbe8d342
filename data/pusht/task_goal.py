"""The goal of recordings, which may not be the task's own, and where their episodes end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.io.messages import first_few
from data.pusht.demo_data import load_demos
from data.pusht.simulator import angle_difference, goal_of

Goal = tuple[float, float, float]
"""Pose of the block: x, y in pixels, and degrees."""
TASK_GOAL: Goal = (256.0, 256.0, 45.0)
FAR_PIXELS, FAR_DEGREES = 40, 30  # from the goal, where it is hardly what was meant


def as_pose(goal: Goal | None) -> np.ndarray:
    """Return x, y, angle of a goal: (3,), by default those of the task."""
    return goal_of({} if goal is None else {"goal": goal})


def as_note(pose: np.ndarray) -> dict[str, list[float]]:
    """Return what the note of an episode says of its goal, (3,): `goal_of` reads it."""
    x, y, angle = pose.tolist()
    return {"goal": [round(x, 3), round(y, 3), round(np.rad2deg(angle) % 360, 3)]}


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


def describe_goals(notes: Sequence[dict[str, Any]]) -> str:
    """Say which goals episodes have that were noted with one each."""
    poses = sorted({tuple(note["goal"]) for note in notes})
    named = first_few(" ".join(f"{number:g}" for number in pose) for pose in poses)
    return f"goals: {len(poses)} poses of the block in {len(notes)} episodes (x y degrees: {named})"


def _distance(poses: np.ndarray, goal: np.ndarray) -> tuple[float, float]:
    """Return the median distances of poses (E, 3) from one, in pixels and degrees."""
    pixels = np.linalg.norm(poses[:, :2] - goal[:2], axis=1)
    degrees = np.rad2deg(np.abs(angle_difference(poses[:, 2], goal[2])))
    return float(np.median(pixels)), float(np.median(degrees))


def _is_far(pixels: float, degrees: float) -> bool:
    return pixels > FAR_PIXELS or degrees > FAR_DEGREES
