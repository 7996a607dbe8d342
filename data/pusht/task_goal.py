"""The goal of recordings, which may not be the task's own, or differ from episode to episode."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from data.io.messages import first_few
from data.pusht.simulator import ACTIONS, STATE_NAMES, WINDOW_SIZE, goal_of
from data.shards.episode_dataset import EpisodeDataset

Goal = tuple[float, float, float]
"""Pose of the block: x, y in pixels, and degrees."""
TASK_GOAL: Goal = (256.0, 256.0, 45.0)


def as_pose(goal: Goal | None) -> np.ndarray:
    """Return x, y, angle of a goal: (3,), by default those of the task."""
    return goal_of({} if goal is None else {"goal": goal})


def check_in_world(goal: Goal | None, flag: str) -> None:
    """Raise ValueError for a goal outside of the world, whose flag has one range for all three."""
    if goal and min(goal[:2]) < 0:
        raise ValueError(
            f"{flag} {goal[0]:g} {goal[1]:g} is outside of the world; X and Y must be between 0 "
            f"and {WINDOW_SIZE}"
        )


def goals_of(dataset: EpisodeDataset) -> np.ndarray | None:
    """Return the goals' poses of all frames, (frames, 3) float32: x, y, angle; None where the
    recordings are not of Push-T."""
    toy = str(dataset.description.get("source")).startswith("toy")
    if toy or dataset.actions != ACTIONS or dataset.state_names != STATE_NAMES:
        return None
    of_all = goal_of(dataset.description)
    poses = [goal_of(note) if "goal" in note else of_all for note in dataset.notes]
    return np.repeat(np.stack(poses).astype(np.float32), dataset.lengths, axis=0)


def random_pose(rng: np.random.Generator) -> np.ndarray:
    """Draw a pose of the block, (3,), at which it can be pushed from all sides."""
    return np.array([*rng.uniform(130, 382, 2), rng.uniform(0, 2 * np.pi)])


def as_note(pose: np.ndarray) -> dict[str, list[float]]:
    """Return what the note of an episode says of its goal, (3,): `goal_of` reads it."""
    x, y, angle = pose.tolist()
    return {"goal": [round(x, 3), round(y, 3), round(np.rad2deg(angle) % 360, 3)]}


def describe_goals(notes: Sequence[dict[str, Any]]) -> str:
    """Say which goals episodes have that were noted with one each."""
    poses = sorted({tuple(note["goal"]) for note in notes})
    named = first_few(" ".join(f"{number:g}" for number in pose) for pose in poses)
    return f"goals: {len(poses)} poses of the block in {len(notes)} episodes (x y degrees: {named})"
