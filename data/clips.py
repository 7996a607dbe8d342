"""Clips: consecutive frames cut from the episodes of one split.

Letters: B clips, T frames of a clip, A numbers in an action, S in a state.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from data.shards.episode_dataset import EpisodeDataset
from data.shards.shard_header import Split

GIB = 2**30


@dataclass
class Clip:
    """A clip; `Clips.batch` puts B in front of every shape."""

    frames: Tensor  # (T, 3, H, W) uint8, RGB
    actions: Tensor  # (T, A) float32 | (T,) int64 | (T, 0); actions[t]: frames[t] -> frames[t + 1]
    rewards: Tensor | None  # (T,) float32, earned on reaching frames[t]
    terminals: Tensor | None  # (T,) bool, frames[t] is a true end
    states: Tensor | None  # (T, S) float32

    def to(self, device: torch.device | str) -> Clip:  # move each field to a device
        return self.map(lambda values: values.to(device, non_blocking=True))

    def map(self, fn: Callable[[Tensor], Tensor]) -> Clip:
        """Apply `fn` to each field that is not None."""
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        changed: dict[str, Any] = {k: None if v is None else fn(v) for k, v in values.items()}
        return Clip(**changed)


class Clips(Dataset):
    """All clips of `clip_length` consecutive frames within the episodes of `split`.

    memory_limit: bytes; a split whose frames need less is read once and cached.
    flag: what makes clips shorter, for the message where no episode is long enough.
    """

    def __init__(
        self,
        dataset: EpisodeDataset,
        split: Split,
        clip_length: int,
        memory_limit: int = GIB,
        flag: str = "",
    ) -> None:
        if clip_length < 1:
            raise ValueError(f"clip_length must be at least 1, not {clip_length}")
        self.dataset, self.split, self.clip_length = dataset, split, clip_length
        episodes = np.array(dataset.episodes(split), np.int64)
        if not len(episodes):
            raise ValueError(
                f"{dataset.folder} has no {split} episode (its {len(dataset)} episodes come "
                f"from {len(set(dataset.sources.tolist()))} sources, and each split needs one "
                f"of its own); record at least 3 sources"
            )
        lengths = dataset.lengths[episodes]
        num_clips = np.maximum(lengths - clip_length + 1, 0)
        if not num_clips.sum():
            shorter = f"lower {flag}, or " if flag else ""
            raise ValueError(
                f"no {split} episode of {dataset.folder} has the {clip_length} frames of a clip "
                f"(the longest has {lengths.max()}); {shorter}record longer episodes"
            )
        self._first_clips = np.cumsum([0, *num_clips])  # of each episode, and of one behind all
        self._episodes = episodes
        self._first_rows = dataset.first_rows[episodes]
        self._end_rows = self._first_rows + lengths
        # the cache holds the frames of this split alone, episode after episode
        self._cache_offset = self._first_rows - (np.cumsum(lengths) - lengths)
        self.cache_on_device(torch.device("cpu"), memory_limit)
        self._columns: dict[str, np.ndarray] = {}

    @property
    def actions(self):
        return self.dataset.actions

    @property
    def image_size(self) -> tuple[int, int]:  # height and width of a frame, in pixels
        return self.dataset.image_size

    def __len__(self) -> int:
        return int(self._first_clips[-1])

    def cache_on_device(self, device: torch.device, memory_limit: int) -> None:
        """Cache the frames of the split on `device` at the first batch, and return them there, if
        they need at most `memory_limit` bytes; otherwise read each batch from the shards."""
        height, width = self.dataset.image_size
        num_bytes = int((self._end_rows - self._first_rows).sum()) * height * width * 3
        self._use_cache, self._cache_device = num_bytes <= memory_limit, device
        self._cache: Tensor | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_cache": None, "_columns": {}}  # read again where needed

    def __getitem__(self, index: int) -> Clip:
        return self.batch(np.array([index])).map(lambda values: values[0])

    def episode_of(self, index: int) -> int:
        """Return the number, within the dataset, of a clip's episode."""
        return int(self._episodes[self._locate(np.array([index]))[0][0]])

    def rows(self, indices: np.ndarray) -> np.ndarray:
        """Return the rows of the clips among all frames of the dataset: (B,) -> (B, T) int64."""
        _, starts = self._locate(indices)
        return starts[:, None] + np.arange(self.clip_length)

    def batch(self, indices: np.ndarray) -> Clip:
        """Read clips: (B,) int64 -> a Clip with (B, T, ...)."""
        rows = self.rows(indices)
        actions = self.column("actions", rows)
        return Clip(
            frames=self.frames_of(indices),
            actions=torch.zeros(*rows.shape, 0) if actions is None else actions,
            rewards=self.column("rewards", rows),
            terminals=self.column("terminals", rows),
            states=self.column("states", rows),
        )

    def frames_of(self, indices: np.ndarray) -> Tensor:
        """Read the frames alone: (B,) int64 -> (B, T, 3, H, W) uint8."""
        episode, starts = self._locate(indices)
        rows = starts[:, None] + np.arange(self.clip_length)
        if not self._use_cache:
            return self._read_frames(rows)
        cache_rows = torch.from_numpy(rows - self._cache_offset[episode][:, None])
        cache = self._cached_frames()
        # much faster than cache[cache_rows] on a CPU
        frames = cache.index_select(0, cache_rows.flatten().to(self._cache_device))
        return frames.view(*cache_rows.shape, *cache.shape[1:])

    def _locate(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return each clip's episode, as an index within the split, and first row: (B,), (B,)."""
        indices = np.asarray(indices, np.int64)
        if len(indices) and not 0 <= indices.min() <= indices.max() < len(self):
            raise IndexError(f"clip indices must be within 0 to {len(self) - 1}; got {indices}")
        episode = np.searchsorted(self._first_clips, indices, side="right") - 1
        return episode, self._first_rows[episode] + indices - self._first_clips[episode]

    def column(self, name: str, rows: np.ndarray) -> Tensor | None:
        """Gather a small field at `rows`, (B, T); None where the dataset does not have it."""
        if not self.dataset.has(name):
            return None
        if name not in self._columns:
            self._columns[name] = self.dataset.read_rows(name, 0, self.dataset.num_frames)
        return torch.from_numpy(self._columns[name][rows])

    def _cached_frames(self) -> Tensor:
        """Return all frames of the split: (N, 3, H, W) uint8."""
        if self._cache is None:
            height, width = self.dataset.image_size
            lengths = self._end_rows - self._first_rows
            shape = (int(lengths.sum()), 3, height, width)
            cache = torch.empty(shape, dtype=torch.uint8, device=self._cache_device)
            for first, end, shift in zip(
                self._first_rows, self._end_rows, self._cache_offset, strict=True
            ):
                frames = self.dataset.read_rows("frames", int(first), int(end))
                cache[first - shift : end - shift] = torch.from_numpy(frames).permute(0, 3, 1, 2)
            self._cache = cache
        return self._cache

    def _read_frames(self, rows: np.ndarray) -> Tensor:
        """Read from the shards, in their order: (B, T) -> (B, T, 3, H, W) uint8.

        The channels stay innermost in memory, as in the shards: a copy would take longer than
        reading."""
        height, width = self.dataset.image_size
        frames = np.empty((*rows.shape, height, width, 3), np.uint8)
        for clip in np.argsort(rows[:, 0], kind="stable"):
            first, last = int(rows[clip, 0]), int(rows[clip, -1])
            self.dataset.read_rows("frames", first, last + 1, out=frames[clip])
        return torch.from_numpy(frames).permute(0, 1, 4, 2, 3)
