"""What every reader of clips has to do, and nothing else: the least that a batch can take."""

from __future__ import annotations

import h5py
import numpy as np
import torch
from numcodecs import blosc  # type: ignore[attr-defined]
from torch import Tensor

from data.clips import Clips
from data.shards.shard_header import h5_dataset

CHECKSUM = 4  # bytes of Fletcher32 behind a chunk


class PlainCopy:
    """Copies clips out of frames in memory: (B,) -> (B, T, 3, H, W)."""

    def __init__(self, clips: Clips) -> None:
        self.clips, self.frames = clips, clips._cached_frames().numpy()

    def __call__(self, indices: np.ndarray) -> Tensor:
        episode, _ = self.clips._locate(indices)
        rows = self.clips.rows(indices) - self.clips._cache_offset[episode][:, None]
        out = np.empty((*rows.shape, *self.frames.shape[1:]), np.uint8)
        for clip, first in zip(out, rows[:, 0].tolist(), strict=True):
            clip[:] = self.frames[first : first + len(clip)]
        return torch.from_numpy(out)


class PlainChunks:
    """Reads the compressed chunks that clips lie in, decompresses them into one place, and copies
    what belongs to the clips; checks no checksum."""

    def __init__(self, clips: Clips) -> None:
        self.clips = clips
        self.headers = clips.dataset.headers
        self.starts = np.cumsum([0, *(int(h.episode_ends[-1]) for h in self.headers)])
        files = [h5py.File(header.path, "r", locking=False) for header in self.headers]
        self.frames = [h5_dataset(file, "frames") for file in files]
        self.chunk = np.empty(self.frames[0].chunks or (), np.uint8)
        blosc.set_nthreads(1)

    def __call__(self, indices: np.ndarray) -> Tensor:
        """(B,) -> (B, T, 3, H, W), the channels innermost in memory, as in the shards."""
        rows = self.clips.rows(indices)
        out = np.empty((*rows.shape, *self.chunk.shape[1:]), np.uint8)
        for clip in np.argsort(rows[:, 0], kind="stable"):
            shard = int(np.searchsorted(self.starts, rows[clip, 0], side="right")) - 1
            first = int(rows[clip, 0] - self.starts[shard])
            self._read(self.frames[shard], first, out[clip])
        return torch.from_numpy(out).permute(0, 1, 4, 2, 3)

    def _read(self, frames: h5py.Dataset, first: int, out: np.ndarray) -> None:
        """Read the frames from `first` on; a clip is of one episode, and so of one shard."""
        size, done = len(self.chunk), 0
        while done < len(out):
            start = (first + done) // size * size
            _, packed = frames.id.read_direct_chunk((start, 0, 0, 0))
            blosc.decompress(packed[:-CHECKSUM], self.chunk)
            part = self.chunk[first + done - start :][: len(out) - done]
            out[done : done + len(part)] = part
            done += len(part)
