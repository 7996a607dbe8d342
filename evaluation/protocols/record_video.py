"""Record what happens in the first episodes that are played, for the films of a report.

Letters: N simulators, n recorded episodes, H W pixels.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


class RecordVideo:
    """Keeps the frames of the first episodes: their goals', their starts', one after each step."""

    def __init__(self, num_episodes: int) -> None:
        self.num_episodes = num_episodes
        self._frames: list[np.ndarray] = []
        self._is_full = False

    def begin(self, episodes: np.ndarray, goals: np.ndarray | None) -> None:
        """Record the first N episodes alone; goals: their frames, (N, 3, H, W) uint8, if any."""
        self._is_full = bool(self._frames)
        if goals is not None:
            self.add(goals)

    def add(self, frames: np.ndarray) -> None:
        """Append a frame of each simulator, (N, 3, H, W) uint8."""
        if not self._is_full:
            # a copy, since a part would hold all
            self._frames.append(frames[: self.num_episodes].copy())

    def videos(self) -> Tensor:
        """Give (n, frames, 3, H, W) uint8; an ended episode repeats its last frame."""
        return torch.from_numpy(np.stack(self._frames, 1))
