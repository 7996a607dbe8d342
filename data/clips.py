"""Clips: windows of consecutive frames, cut from the episodes of one split.

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

from data.shards import EpisodeDataset
from data.splits import Split

GIB = 2**30


@dataclass
class Clip:
    """A window of an episode; `Clips.batch` puts B in front of every shape."""

    frames: Tensor  # (T, 3, H, W) uint8, RGB
    actions: Tensor  # (T, A) float32 | (T,) int64; actions[t]: frames[t] -> frames[t + 1]
    rewards: Tensor | None  # (T,) float32, earned on reaching frames[t]
    terminals: Tensor | None  # (T,) bool, frames[t] is a true end
    states: Tensor | None  # (T, S) float32

    def to(self, device: torch.device | str) -> Clip:
        return self.map(lambda values: values.to(device, non_blocking=True))

    def map(self, fn: Callable[[Tensor], Tensor]) -> Clip:
        """Apply `change` to each field that is there."""
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        changed: dict[str, Any] = {k: None if v is None else fn(v) for k, v in values.items()}
        return Clip(**changed)


class Clips(Dataset):
    """All windows of `frames` consecutive frames that lie within an episode of `split`.

    memory_limit: bytes; a split whose frames need less is read once and kept.
    """

    def __init__(
        self,
        dataset: EpisodeDataset,
        split: Split,
        clip_length: int,
        memory_limit: int = GIB,
    ) -> None:
        if clip_length < 1:
            raise ValueError(f"a clip of {clip_length} frames is none; clips start at 1")
        self.dataset, self.split, self.clip_length = dataset, split, clip_length
        episodes = np.array(dataset.episodes(split), np.int64)
        if not len(episodes):
            raise ValueError(
                f"{dataset.folder} has no {split} episode (its {len(dataset)} episodes stem "
                f"from {len(set(dataset.sources.tolist()))} sources, and each split needs one "
                f"of its own); record at least 3 sources"
            )
        lengths = dataset.lengths[episodes]
        num_clips = np.maximum(lengths - clip_length + 1, 0)
        if not num_clips.sum():
            raise ValueError(
                f"no {split} episode of {dataset.folder} has {clip_length} frames (the longest has "
                f"{lengths.max()}); ask for shorter clips"
            )
        self._cumulative_clips = np.cumsum(num_clips)
        self._episodes = episodes
        self._first_rows = dataset.first_rows[episodes]
        self._end_rows = self._first_rows + lengths
        # Frames in memory are those of this split alone, one episode behind the other.
        self._cache_offset = self._first_rows - (np.cumsum(lengths) - lengths)
        self.cache_on_device(torch.device("cpu"), memory_limit)
        self._columns: dict[str, np.ndarray] = {}

    @property
    def actions(self):
        return self.dataset.actions

    @property
    def image_size(self) -> tuple[int, int]:
        return self.dataset.image_size

    def __len__(self) -> int:
        return int(self._cumulative_clips[-1])

    def cache_on_device(self, device: torch.device, memory_limit: int) -> None:
        """Keep the frames of the split on `device` from the first batch on, and give them there,
        if they need less than `memory_limit` bytes; else each batch is read from the shards."""
        height, width = self.dataset.image_size
        num_bytes = int((self._end_rows - self._first_rows).sum()) * height * width * 3
        self._use_cache, self._cache_device = num_bytes <= memory_limit, device
        self._cache: Tensor | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_kept": None, "_columns": {}}  # read again where it is needed

    def __getitem__(self, index: int) -> Clip:
        return self.batch(np.array([index])).map(lambda values: values[0])

    def episode_of(self, index: int) -> int:
        """Give the number, within the recordings, of the episode a clip is cut from."""
        return int(self._episodes[self._locate(np.array([index]))[0][0]])

    def rows(self, indices: np.ndarray) -> np.ndarray:
        """Give the clips' places among all frames of the recordings: (B,) -> (B, T) int64."""
        _, starts = self._locate(indices)
        return starts[:, None] + np.arange(self.clip_length)

    def batch(self, indices: np.ndarray) -> Clip:
        """Read clips: (B,) int64 -> a Clip with (B, T, ...)."""
        episode, starts = self._locate(indices)
        rows = starts[:, None] + np.arange(self.clip_length)
        if self._use_cache:
            cache_rows = torch.from_numpy(rows - self._cache_offset[episode][:, None])
            cache = self._cached_frames()
            # twenty times as fast as kept[inside] on a CPU
            frames = cache.index_select(0, cache_rows.flatten().to(self._cache_device))
            frames = frames.view(*cache_rows.shape, *cache.shape[1:])
        else:
            frames = self._read_frames(rows)
        actions = self.column("actions", rows)
        assert actions is not None
        return Clip(
            frames=frames,
            actions=actions,
            rewards=self.column("rewards", rows),
            terminals=self.column("terminals", rows),
            states=self.column("states", rows),
        )

    def _locate(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Give the place of each clip's episode within the split, and its first row: (B,), (B,)."""
        indices = np.asarray(indices, np.int64)
        if len(indices) and not 0 <= indices.min() <= indices.max() < len(self):
            raise IndexError(f"clips are numbered 0 to {len(self) - 1}; {indices} reaches outside")
        episode = np.searchsorted(self._cumulative_clips, indices, side="right")
        previous = np.concatenate([[0], self._cumulative_clips])[episode]
        return episode, self._first_rows[episode] + indices - previous

    def column(self, name: str, rows: np.ndarray) -> Tensor | None:
        """Gather a small field at `rows`, (B, T); None where the recordings have none."""
        if not self.dataset.has(name):
            return None
        if name not in self._columns:
            self._columns[name] = self.dataset.read_rows(name, 0, self.dataset.num_frames)
        return torch.from_numpy(self._columns[name][rows])

    def _cached_frames(self) -> Tensor:
        """Give all frames of the split: (rows, 3, H, W) uint8."""
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
        """Read from the shards, in their order: (B, T) -> (B, T, 3, H, W) uint8, whose colours lie
        innermost as they do there: to turn them would take longer than to read them."""
        height, width = self.dataset.image_size
        frames = np.empty((*rows.shape, height, width, 3), np.uint8)
        for clip in np.argsort(rows[:, 0], kind="stable"):
            first, last = int(rows[clip, 0]), int(rows[clip, -1])
            self.dataset.read_rows("frames", first, last + 1, out=frames[clip])
        return torch.from_numpy(frames).permute(0, 1, 4, 2, 3)
