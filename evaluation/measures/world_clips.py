"""Clips whose actions are those that a world's rollout takes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from data.clips import Clip, Clips
from data.shards import EpisodeDataset
from data.splits import Split
from models.world import World


class InferredClips(Clips):
    """Clips with the actions that a world infers from their frames."""

    def __init__(
        self, world: World, dataset: EpisodeDataset, split: Split, clip_length: int
    ) -> None:
        super().__init__(dataset, split, clip_length)
        self.world = world

    def batch(self, indices: np.ndarray) -> Clip:
        """Read clips: (B,) int64 -> a Clip with (B, T, ...); the last action leads nowhere."""
        clip = super().batch(indices)
        inferred = self.world.actions_of(clip.frames, clip.actions).cpu()
        return replace(clip, actions=torch.cat([inferred, inferred[:, -1:]], dim=1))


def world_clips(world: World, dataset: EpisodeDataset, split: Split, clip_length: int) -> Clips:
    """Clips of a split, with the actions of the data, or the world's own."""
    if world.infers_actions:
        return InferredClips(world, dataset, split, clip_length)
    return Clips(dataset, split, clip_length)
