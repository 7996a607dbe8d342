"""Clips whose episodes have goals with a pose."""

from __future__ import annotations

import numpy as np
import torch

from data.batch import Batch
from data.clips import Clips
from pipeline.batches.clip_batches import ClipBatches


class GoalClips(ClipBatches):
    """The same with `goals`, (B, 3)."""

    def __init__(
        self, clips: Clips, needs: frozenset[str], latents: np.ndarray | None, goals: np.ndarray
    ) -> None:
        """goals: poses of all frames of the dataset, (frames, 3)."""
        super().__init__(clips, needs, latents)
        self.goals = goals

    def batch(self, indices: np.ndarray) -> Batch:
        batch = super().batch(indices)
        batch.extra["goals"] = torch.from_numpy(self.goals[self.clips.rows(indices)[:, 0]])
        return batch
