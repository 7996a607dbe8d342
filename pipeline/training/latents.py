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
from data.shards import Recordings, write_whole
from models.tokenizers.tokenizer import Latents
from models.world import arithmetic
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
        self._near: Tensor | None = None

    def keep_on(self, device: torch.device, memory_limit: int) -> None:
        """Copy all latents to `device`, and give them there, if they take less than
        `memory_limit` bytes."""
        if self.latents.nbytes <= memory_limit:
            self._near = torch.from_numpy(np.array(self.latents)).to(device)

    def __len__(self) -> int:
        return len(self.clips)

    def batch(self, indices: np.ndarray) -> LatentClip:
        rows = self.clips.rows(indices)
        if self._near is None:
            latents = torch.from_numpy(np.asarray(self.latents[rows]))
        else:
            latents = self._near[torch.from_numpy(rows).to(self._near.device)]
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
    recordings: Recordings,
    device: torch.device,
    batch_size: int = 64,
) -> np.ndarray:
    """Give latents of all recordings, encoded now where they are not there yet.

    (frames, N) codes, or (frames, P, D).

    `fingerprint` is the tokenizer's; another one, or other recordings, make the cache anew. An
    interrupted pass goes on at the batch where it was.
    """
    latents: Latents = tokenizer.latents
    shape: tuple[int, ...] = (recordings.total, latents.per_frame)
    if latents.kind == "discrete":
        dtype = np.int16 if latents.codes <= 2**15 else np.int32
    else:
        shape, dtype = (*shape, latents.width), np.float16
    wanted = {
        "tokenizer": fingerprint,
        "recordings": recordings.fingerprint,
        "shape": list(shape),
        "dtype": np.dtype(dtype).name,
    }
    folder.mkdir(parents=True, exist_ok=True)
    about, values = folder / "about.json", folder / "latents.bin"
    known = _read(about)
    done = known.pop("done", 0)
    size = math.prod(shape) * np.dtype(dtype).itemsize
    whole = values.exists() and values.stat().st_size == size  # a short file would read as zeros
    if known != wanted or not whole or not isinstance(done, int):
        done = 0
        write_whole(about, json.dumps(wanted | {"done": 0}).encode())
    mode = "r+" if done else "w+"
    store = np.memmap(values, dtype, mode, shape=shape)
    if done < recordings.total:
        bar = tqdm(total=recordings.total, initial=done, desc="latents", unit=" frames")
        for start in range(done, recordings.total, batch_size):
            stop = min(start + batch_size, recordings.total)
            frames = torch.from_numpy(recordings.read_rows("frames", start, stop))
            frames = frames.permute(0, 3, 1, 2).to(device)
            precision = pick_precision(device, "auto")
            with torch.no_grad(), arithmetic(device, precision):
                encoded = tokenizer.encode(frames)
                # numpy has no bfloat16, in which some tokenizers answer
                encoded = encoded.float() if encoded.is_floating_point() else encoded
                store[start:stop] = encoded.cpu().numpy()
            bar.update(stop - start)
            if (start // batch_size) % 100 == 99:
                store.flush()
                write_whole(about, json.dumps(wanted | {"done": stop}).encode())
        bar.close()
        store.flush()
        write_whole(about, json.dumps(wanted | {"done": recordings.total}).encode())
    return np.memmap(values, dtype, "r", shape=shape)


def _read(about: Path) -> dict[str, Any]:
    """What a cache says of itself; nothing where that cannot be read: it is made anew."""
    try:
        known = json.loads(about.read_text())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}
