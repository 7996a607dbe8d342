"""What is being recorded in play: the images of a video, and the actions that led to them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pipeline.play.action_file import write_actions
from pipeline.video import write_video


@dataclass
class Recording:
    first_step: int
    """Of the player, at which it begins."""
    frames: list[np.ndarray]
    """(H, W, 3) uint8 each, the one at the start first."""
    actions: list[np.ndarray] = field(default_factory=list)
    """Between the frames; filled in at the end."""

    def write(self, folder: Path, fps: float) -> None:
        """Write frames/, rollout.gif, rollout.mp4 and actions.npy into a folder."""
        width = max(frame.shape[1] for frame in self.frames)  # showing the simulator changes it
        padded = [np.pad(f, ((0, 0), (0, width - f.shape[1]), (0, 0))) for f in self.frames]
        write_video(folder, padded, fps)
        write_actions(folder, self.actions)


def next_folder(parent: Path) -> Path:
    """The first of recording-000 ... that is not there yet."""
    index = 0
    while (parent / f"recording-{index:03d}").exists():
        index += 1
    return parent / f"recording-{index:03d}"
