"""A few frames of a shard as one image, for those who follow its build."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from data.io.files import atomic_path
from data.shards.episodes import Episode

COLUMNS, ROWS = 8, 2
GAP = 2  # pixels between frames


def draw_frames(path: Path, episodes: Sequence[Episode]) -> None:
    """Draw frames of the first episodes, a row each, or of single images one of each."""
    rows = [episode.frames for episode in episodes if len(episode.frames)]
    if all(len(frames) == 1 for frames in rows):
        rows = [np.concatenate(rows[at : at + COLUMNS]) for at in range(0, len(rows), COLUMNS)]
    lines = []
    for frames in rows[:ROWS]:
        columns = np.linspace(0, len(frames) - 1, min(COLUMNS, len(frames))).astype(int)
        height, width = frames.shape[1:3]
        line = np.full((height + GAP, COLUMNS * (width + GAP), 3), 255, np.uint8)
        for place, column in enumerate(columns):
            line[:height, place * (width + GAP) :][:, :width] = frames[column]
        lines.append(line)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as partial:
        Image.fromarray(np.concatenate(lines)).save(partial, "PNG")
