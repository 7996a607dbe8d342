"""Clips whose actions are those that a world's rollout takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from data.clips import GIB, Clip, Clips
from data.shards.episode_dataset import EpisodeDataset
from data.shards.shard_header import Split
from models.world import World


class InferredClips(Clips):
    """Clips with the actions that a world infers from their frames."""

    def __init__(
        self,
        world: World,
        dataset: EpisodeDataset,
        split: Split,
        clip_length: int,
        memory_limit: int = GIB,
    ) -> None:
        super().__init__(dataset, split, clip_length, memory_limit)
        self.world = world

    def batch(self, indices: np.ndarray) -> Clip:
        """Read clips: (B,) int64 -> a Clip with (B, T, ...); the last action leads nowhere."""
        clip = super().batch(indices)
        inferred = self.world.actions_of(clip.frames, clip.actions).cpu()
        return replace(clip, actions=torch.cat([inferred, inferred[:, -1:]], dim=1))

    def recorded(self, indices: np.ndarray) -> Clip:
        """Read the same clips with the actions of the data, to measure by."""
        return super().batch(indices)


def horizons_within(
    dataset: EpisodeDataset, split: Split, context: int, horizons: Sequence[int]
) -> list[int]:
    """Give the horizons that the longest episode of a split reaches after `context` frames.

    The farthest that it reaches, where it reaches none of them; at least 1.
    """
    longest = max((dataset.length(e) for e in dataset.episodes(split)), default=0)
    reached = [h for h in horizons if context + h <= longest]
    return reached or [max(1, min(longest - context, *horizons))]


def world_clips(
    world: World,
    dataset: EpisodeDataset,
    split: Split,
    clip_length: int,
    memory_limit: int = GIB,
) -> Clips:
    """Clips of a split, with the actions of the data, or the world's own."""
    if world.infers_actions:
        return InferredClips(world, dataset, split, clip_length, memory_limit)
    return Clips(dataset, split, clip_length, memory_limit)
