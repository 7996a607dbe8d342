"""Clips of episodes one after another, for methods that forget where an episode begins.

Letters: B clips, T frames of a clip.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from data.clips import GIB, Clips
from data.shards.episode_dataset import EpisodeDataset
from data.shards.shard_header import Split


class JoinedClips(Clips):
    """Windows of all frames of a split in a row: where an episode ends, the next one begins.

    Episodes that are shorter than a clip are learned from, too, and true ends come at any place in
    a clip.  The column `is_first`, (B, T) bool, marks frames that begin an episode, to which no
    action has led.
    """

    def __init__(
        self,
        dataset: EpisodeDataset,
        split: Split,
        clip_length: int,
        memory_limit: int = GIB,
        flag: str = "",
    ) -> None:
        super().__init__(dataset, split, 1, memory_limit)
        self.clip_length, num_frames = clip_length, len(self)
        if num_frames < clip_length:
            raise ValueError(
                f"the {split} episodes of {dataset.folder} have {num_frames} frames together, and "
                f"a clip has {clip_length}; lower {flag}, or record more"
            )
        rows = zip(self._first_rows, self._end_rows, strict=True)
        self._rows = np.concatenate([np.arange(first, end) for first, end in rows])
        self._first_clips = np.minimum(self._first_clips, num_frames - clip_length + 1)

    def rows(self, indices: np.ndarray) -> np.ndarray:
        """Return the rows of the clips among all frames of the dataset: (B,) -> (B, T) int64."""
        self._locate(indices)  # raises IndexError
        return self._rows[np.asarray(indices)[:, None] + np.arange(self.clip_length)]

    def column(self, name: str, rows: np.ndarray) -> Tensor | None:
        if name == "is_first":
            return torch.from_numpy(np.isin(rows, self._first_rows))
        return super().column(name, rows)

    def frames_of(self, indices: np.ndarray) -> Tensor:
        if self._use_cache:
            return super().frames_of(indices)
        parts = []
        for clip in self.rows(indices):  # within an episode rows follow each other
            pieces = np.split(clip, np.flatnonzero(np.diff(clip) != 1) + 1)
            parts.append(torch.cat([self._read_frames(piece[None])[0] for piece in pieces]))
        return torch.stack(parts)
