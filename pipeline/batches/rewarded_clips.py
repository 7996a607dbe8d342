"""Clips of which half are drawn by their reward: those near a goal are rare."""

from __future__ import annotations

import numpy as np

from data.batch import Batch
from pipeline.batches.clip_batches import ClipBatches

POWER = 8.0  # half the highest reward is drawn once for 256 times of the highest
LEAST = 1e-3  # chance, to the highest reward's 1, of a clip without reward


class RewardedClips:
    """Every second clip of a batch is another one, that begins or ends with a higher reward."""

    def __init__(self, clips: ClipBatches) -> None:
        self.clips, dataset = clips, clips.clips.dataset
        rewards = dataset.read_rows("rewards", 0, dataset.num_frames).astype(np.float64)
        rows = clips.clips.rows(np.arange(len(clips)))
        self._rewards = np.maximum(rewards[rows[:, 0]], rewards[rows[:, -1]])
        low, high = self._rewards.min(), self._rewards.max()
        share = (self._rewards - low) / max(high - low, 1e-12)
        self._cumulative = np.cumsum(share**POWER + LEAST)

    def __len__(self) -> int:
        return len(self.clips)

    def highest(self, count: int) -> np.ndarray:
        """Return the indices of the clips of the highest rewards, at most `count`."""
        return np.argsort(self._rewards, kind="stable")[-count:]

    def batch(self, indices: np.ndarray) -> Batch:
        # drawn from the indices themselves, so that the batch is a function of them
        rng = np.random.default_rng(indices)
        drawn = rng.random(len(indices[1::2])) * self._cumulative[-1]
        mixed = indices.copy()
        mixed[1::2] = np.searchsorted(self._cumulative, drawn).clip(max=len(self) - 1)
        return self.clips.batch(mixed)
