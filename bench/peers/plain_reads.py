"""What every reader of clips has to do, and nothing else: the least that a batch can take."""

from __future__ import annotations

import h5py
import numpy as np
import torch
from numcodecs import blosc  # type: ignore[attr-defined]
from torch import Tensor

from data.clips import Clips
from data.shards.episode_dataset import CACHE_BYTES
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
    """Reads the compressed chunks that clips lie in, decompresses them, and copies what belongs to
    the clips; checks no checksum.  As many chunks are kept as ours keeps."""

    def __init__(self, clips: Clips) -> None:
        self.clips = clips
        self.headers = clips.dataset.headers
        self.starts = np.cumsum([0, *(int(h.episode_ends[-1]) for h in self.headers)])
        files = [h5py.File(header.path, "r", locking=False) for header in self.headers]
        self.frames = [h5_dataset(file, "frames") for file in files]
        self.chunk_shape: tuple[int, ...] = self.frames[0].chunks or ()
        self.most_kept = max(1, CACHE_BYTES // int(np.prod(self.chunk_shape)))
        self.kept: dict[tuple[int, int], np.ndarray] = {}
        """The decompressed chunks by shard and first row; the last used is last."""
        blosc.set_nthreads(1)

    def __call__(self, indices: np.ndarray) -> Tensor:
        """(B,) -> (B, T, 3, H, W), the channels innermost in memory, as in the shards."""
        rows = self.clips.rows(indices)
        out = np.empty((*rows.shape, *self.chunk_shape[1:]), np.uint8)
        for clip in np.argsort(rows[:, 0], kind="stable"):
            shard = int(np.searchsorted(self.starts, rows[clip, 0], side="right")) - 1
            first = int(rows[clip, 0] - self.starts[shard])
            self._read(shard, first, out[clip])
        return torch.from_numpy(out).permute(0, 1, 4, 2, 3)

    def _read(self, shard: int, first: int, out: np.ndarray) -> None:
        """Read the frames from `first` on; a clip is of one episode, and so of one shard."""
        size, done = self.chunk_shape[0], 0
        while done < len(out):
            start = (first + done) // size * size
            part = self._chunk(shard, start)[first + done - start :][: len(out) - done]
            out[done : done + len(part)] = part
            done += len(part)

    def _chunk(self, shard: int, start: int) -> np.ndarray:
        kept = self.kept
        chunk = kept.pop((shard, start), None)
        if chunk is None:
            full = len(kept) == self.most_kept
            place = kept.pop(next(iter(kept))) if full else np.empty(self.chunk_shape, np.uint8)
            _, packed = self.frames[shard].id.read_direct_chunk((start, 0, 0, 0))
            blosc.decompress(packed[:-CHECKSUM], place)
            chunk = place
        kept[shard, start] = chunk
        return chunk
