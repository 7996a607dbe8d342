"""Batches of clips with the fields that a method needs, and no others."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from data.batch import Batch
from data.clips import Clips
from data.shards.episode_dataset import EpisodeDataset


def check_actions(dataset: EpisodeDataset, needs: frozenset[str]) -> None:
    """Raise ValueError where a method needs actions, and there are none."""
    if "actions" in needs and not dataset.has("actions"):
        raise ValueError(
            f"{dataset.folder} holds no actions, and this method learns from them; choose one that "
            f"infers its own, or record actions"
        )


class ClipBatches:
    """Clips as what a loss reads: `frames`, `latents` from the cache, normalized `actions`,
    `rewards`, `continues`, `states`, `is_first`, each where it is in `needs` and there is one."""

    def __init__(
        self,
        clips: Clips,
        needs: frozenset[str],
        latents: np.ndarray | None = None,
        extra: dict[str, np.ndarray] | None = None,
    ) -> None:
        """latents: of all frames of the dataset, (frames, N) or (frames, P, D); extra: the same of
        others, by their names in a batch's `extra`."""
        if "latents" in needs and latents is None:
            raise ValueError("this method reads latents, and no tokenizer has made any")
        check_actions(clips.dataset, needs)
        self.clips, self.needs, self.latents = clips, needs, latents
        self.extra = extra or {}
        self._cached: Tensor | None = None

    def cache_on_device(self, device: torch.device, memory_limit: int) -> None:
        """Keep frames or latents on `device`, and give them there, if they take less than
        `memory_limit` bytes."""
        if "frames" in self.needs:
            self.clips.cache_on_device(device, memory_limit)
        if self.latents is not None and self.latents.nbytes <= memory_limit:
            self._cached = torch.from_numpy(np.array(self.latents)).to(device)

    def __len__(self) -> int:
        return len(self.clips)

    def batch(self, indices: np.ndarray) -> Batch:
        """Read clips: (B,) int64 -> (B, T, ...) of each field."""
        rows, needs = self.clips.rows(indices), self.needs
        batch = Batch()
        if "frames" in needs:
            batch.frames = self.clips.frames_of(indices)
        if "latents" in needs:
            batch.latents = self._latents(rows)
        if "actions" in needs:
            actions = self.clips.column("actions", rows)
            assert actions is not None
            batch.actions = self.clips.actions.normalize(actions)
        if "rewards" in needs:
            batch.rewards = self.clips.column("rewards", rows)
        if "continues" in needs:
            terminals = self.clips.column("terminals", rows)
            batch.continues = None if terminals is None else 1 - terminals.float()
        extra = {k: self.clips.column(k, rows) for k in needs & {"states", "is_first"}}
        batch.extra = {k: v for k, v in extra.items() if v is not None}
        for name, values in self.extra.items():
            batch.extra[name] = as_latents(torch.from_numpy(np.asarray(values[rows])))
        return batch

    def _latents(self, rows: np.ndarray) -> Tensor:
        if self._cached is not None:
            return as_latents(self._cached[torch.from_numpy(rows).to(self._cached.device)])
        assert self.latents is not None
        return as_latents(torch.from_numpy(np.asarray(self.latents[rows])))


def as_latents(stored: Tensor) -> Tensor:
    """What the cache stores small, as models read it: float32 vectors, or int64 codes."""
    return stored.float() if stored.is_floating_point() else stored.long()
