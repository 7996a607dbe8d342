"""What the recordings show of a task: the steps that lead up to a high reward."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data.actions import ActionSpec
from data.shards import EpisodeDataset
from pipeline.training.latents import LatentClip, LatentClips


@dataclass
class DemoBatch:
    """A batch of frames and what was done there."""

    latents: Tensor  # (B, N) int64, or (B, P, D)
    actions: Tensor  # (B, A) normalised, or (B,) codes


class DemoSteps:
    """Steps of `split` worth cloning.

    Of an episode whose reward reaches `enough`, those before it is highest; of recordings without
    rewards, all.
    """

    def __init__(
        self, dataset: EpisodeDataset, split: str, latents: np.ndarray, min_reward: float
    ) -> None:
        self.actions: ActionSpec = dataset.actions
        self.latents = latents
        self.all_actions = dataset.read_rows("actions", 0, dataset.num_frames)
        rows = []
        episodes = dataset.episodes(split)  # type: ignore[arg-type]
        for episode in episodes:
            first, length = int(dataset.first_rows[episode]), dataset.length(episode)
            end = length - 1  # the last action leads nowhere
            if dataset.has("rewards"):
                rewards = dataset.read(episode, "rewards")
                end = int(rewards.argmax()) if rewards.max() >= min_reward else 0
            rows.append(np.arange(first, first + end))
        self.num_episodes = sum(len(r) > 0 for r in rows)
        self.rows = np.concatenate(rows) if rows else np.zeros(0, np.int64)
        if not len(self.rows):
            raise ValueError(
                f"no {split} episode of {dataset.folder} reaches a reward of {min_reward}, so there "
                f"is nothing to clone; lower --enough, or record demonstrations of the task"
            )

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: np.ndarray) -> DemoBatch:
        rows = self.rows[indices]
        latents = torch.from_numpy(np.asarray(self.latents[rows]))
        latents = latents.float() if latents.is_floating_point() else latents.long()
        actions = torch.from_numpy(self.all_actions[rows])
        return DemoBatch(latents, self.actions.normalize(actions))


@dataclass
class StartsAndDemos:
    starts: LatentClip
    demos: DemoBatch


class StartsWithDemos:
    """For each batch of starts of imagination, as many shown steps."""

    def __init__(self, starts: LatentClips, demos: DemoSteps) -> None:
        self.starts, self.demos = starts, demos

    def __len__(self) -> int:
        return len(self.starts)

    def batch(self, indices: np.ndarray) -> StartsAndDemos:
        # drawn from the starts themselves, so that the batch is a function of its indices
        rng = np.random.default_rng(indices)
        demo_indices = rng.integers(0, len(self.demos), len(indices))
        return StartsAndDemos(self.starts.batch(indices), self.demos.batch(demo_indices))
