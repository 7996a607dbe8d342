"""Latents of all recordings, made once per tokenizer and read from a memory map."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from data.clips import Clips
from data.files import atomic_write
from data.shards import EpisodeDataset
from models.tokenizers.tokenizer import LatentSpec
from models.world import autocast
from pipeline.device import pick_precision


@dataclass
class LatentClip:
    """A batch of windows. Letters as in data/clips.py, N latents a frame."""

    latents: Tensor  # (B, T, N) int64, or (B, T, P, D) float32
    actions: Tensor  # (B, T, A) normalised, or (B, T) codes
    rewards: Tensor | None  # (B, T)
    continues: Tensor | None  # (B, T) float, 0 at a true end


class LatentClips:
    """The windows of `clips` as latents."""

    def __init__(self, clips: Clips, latents: np.ndarray) -> None:
        self.clips, self.latents = clips, latents
        self._cached: Tensor | None = None

    def cache_on_device(self, device: torch.device, memory_limit: int) -> None:
        """Copy all latents to `device`, and give them there, if they take less than
        `memory_limit` bytes."""
        if self.latents.nbytes <= memory_limit:
            self._cached = torch.from_numpy(np.array(self.latents)).to(device)

    def __len__(self) -> int:
        return len(self.clips)

    def batch(self, indices: np.ndarray) -> LatentClip:
        rows = self.clips.rows(indices)
        if self._cached is None:
            latents = torch.from_numpy(np.asarray(self.latents[rows]))
        else:
            latents = self._cached[torch.from_numpy(rows).to(self._cached.device)]
        actions = self.clips.column("actions", rows)
        assert actions is not None
        terminals = self.clips.column("terminals", rows)
        return LatentClip(
            latents=latents.float() if latents.is_floating_point() else latents.long(),
            actions=self.clips.actions.normalize(actions),
            rewards=self.clips.column("rewards", rows),
            continues=None if terminals is None else 1 - terminals.float(),
        )


def cache_latents(
    folder: Path,
    tokenizer: Any,
    fingerprint: str,
    dataset: EpisodeDataset,
    device: torch.device,
    batch_size: int = 64,
) -> np.ndarray:
    """Give latents of all recordings, encoded now where they are not there yet.

    (frames, N) codes, or (frames, P, D).

    `fingerprint` is the tokenizer's; another one, or other recordings, make the cache anew. An
    interrupted pass goes on at the batch where it was.
    """
    latent_spec: LatentSpec = tokenizer.latents
    shape: tuple[int, ...] = (dataset.num_frames, latent_spec.tokens_per_frame)
    if latent_spec.kind == "discrete":
        dtype = np.int16 if latent_spec.codebook_size <= 2**15 else np.int32
    else:
        shape, dtype = (*shape, latent_spec.dim), np.float16
    expected = {
        "tokenizer": fingerprint,
        "recordings": dataset.fingerprint,
        "shape": list(shape),
        "dtype": np.dtype(dtype).name,
    }
    folder.mkdir(parents=True, exist_ok=True)
    metadata_path, data_path = folder / "about.json", folder / "latents.bin"
    stored = _read_metadata(metadata_path)
    num_encoded = stored.pop("done", 0)
    num_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    complete = (
        data_path.exists() and data_path.stat().st_size == num_bytes
    )  # a short file would read as zeros
    if stored != expected or not complete or not isinstance(num_encoded, int):
        num_encoded = 0
        atomic_write(metadata_path, json.dumps(expected | {"done": 0}).encode())
    mode = "r+" if num_encoded else "w+"
    memmap = np.memmap(data_path, dtype, mode, shape=shape)
    if num_encoded < dataset.num_frames:
        progress_bar = tqdm(
            total=dataset.num_frames, initial=num_encoded, desc="latents", unit=" frames"
        )
        for start in range(num_encoded, dataset.num_frames, batch_size):
            stop = min(start + batch_size, dataset.num_frames)
            frames = torch.from_numpy(dataset.read_rows("frames", start, stop))
            frames = frames.permute(0, 3, 1, 2).to(device)
            precision = pick_precision(device, "auto")
            with torch.no_grad(), autocast(device, precision):
                encoded = tokenizer.encode(frames)
                # numpy has no bfloat16, in which some tokenizers answer
                encoded = encoded.float() if encoded.is_floating_point() else encoded
                memmap[start:stop] = encoded.cpu().numpy()
            progress_bar.update(stop - start)
            if (start // batch_size) % 100 == 99:
                memmap.flush()
                atomic_write(metadata_path, json.dumps(expected | {"done": stop}).encode())
        progress_bar.close()
        memmap.flush()
        atomic_write(metadata_path, json.dumps(expected | {"done": dataset.num_frames}).encode())
    return np.memmap(data_path, dtype, "r", shape=shape)


def _read_metadata(metadata_path: Path) -> dict[str, Any]:
    """What a cache says of itself; nothing where that cannot be read: it is made anew."""
    try:
        metadata = json.loads(metadata_path.read_text())
    except (OSError, ValueError):
        return {}
    return metadata if isinstance(metadata, dict) else {}
