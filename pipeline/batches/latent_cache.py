"""Latents of all frames of a dataset, made once and read from a memory map.

Letters: N latents a frame, P patches, D latent width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from data.shards.episode_dataset import EpisodeDataset
from models.layers.precision import autocast
from models.tokenizers.tokenizer import LatentSpec
from pipeline.batches.row_file import RowFile
from pipeline.device import pick_precision

CHUNK = 64  # frames encoded at a time
FLUSH_EVERY = 100  # chunks


@dataclass(frozen=True)
class Span:
    """Frames `start` to `stop` of the dataset, to be encoded with `past` frames before them."""

    start: int
    stop: int
    past: int


class ClipEncoder(Protocol):
    """A tokenizer, or a world."""

    latents: LatentSpec
    temporal_context: int

    def encode_clip(self, frames: Tensor) -> Tensor:
        """(B, T, 3, H, W) uint8 -> (B, T, N) or (B, T, P, D)."""
        ...

    def latents_key(self, fingerprint: str) -> str:
        """What the latents depend on."""
        ...


def cache_latents(
    folder: Path,
    encoder: ClipEncoder,
    fingerprint: str,
    dataset: EpisodeDataset,
    device: torch.device,
) -> np.ndarray:
    """Give the tokenizer's latents, encoded now where they are not there yet.

    Returns (frames, N) codes, or (frames, P, D).  `fingerprint` is the tokenizer's; another key
    (`latents_key`), or another dataset, makes the cache again.  An interrupted pass resumes at the
    chunk where it was; one that another process is at is waited for.
    A frame is encoded with those of its own episode before it, as far as `temporal_context` goes.
    """

    def encode(span: Span) -> Tensor:
        rows = dataset.read_rows("frames", span.start - span.past, span.stop)
        frames = torch.from_numpy(rows).permute(0, 3, 1, 2).to(device)
        with torch.no_grad(), autocast(device, pick_precision(device, "auto")):
            if not span.past and encoder.temporal_context == 1:
                return encoder.encode_clip(frames[:, None])[:, 0]
            return encoder.encode_clip(frames[None])[0, span.past :]

    spans = list(_spans(dataset, encoder.temporal_context))
    key = encoder.latents_key(fingerprint)
    return fill_cache(folder, encoder.latents, key, dataset, spans, encode)


def _spans(dataset: EpisodeDataset, context: int) -> Iterator[Span]:
    """Chunks of frames; within one episode where a frame is encoded with those before it."""
    if context == 1:
        for start in range(0, dataset.num_frames, CHUNK):
            yield Span(start, min(start + CHUNK, dataset.num_frames), 0)
        return
    for first, length in zip(dataset.first_rows, dataset.lengths, strict=True):
        first, end = int(first), int(first + length)
        for start in range(first, end, CHUNK):
            yield Span(start, min(start + CHUNK, end), min(context - 1, start - first))


def fill_cache(
    folder: Path,
    spec: LatentSpec,
    fingerprint: str,
    dataset: EpisodeDataset,
    spans: list[Span],
    encode: Callable[[Span], Tensor],
) -> np.ndarray:
    """Append what `encode` makes of each span to the rows in `folder`, and give them all."""
    shape: tuple[int, ...] = (dataset.num_frames, spec.tokens_per_frame)
    if spec.kind == "discrete":
        dtype = np.int16 if spec.codebook_size <= 2**15 else np.int32
    else:
        shape, dtype = (dataset.num_frames, spec.num_patches, spec.dim), np.float16
    identity = {"encoder": fingerprint, "dataset": dataset.fingerprint, "chunk": CHUNK}
    with RowFile(folder, shape, dtype, identity) as file:
        left = [span for span in spans if span.start >= file.done]
        progress = tqdm(
            total=shape[0], initial=file.done, desc="latents", unit=" frames", disable=not left
        )
        with progress:
            for number, span in enumerate(left, 1):
                file.append(_as_rows(encode(span), spec, span, dtype))
                progress.update(span.stop - span.start)
                if number % FLUSH_EVERY == 0:
                    file.flush()
        return file.finish()


def _as_rows(encoded: Tensor, spec: LatentSpec, span: Span, dtype: Any) -> np.ndarray:
    """Convert latents to what is stored; ValueError for those that no model can be trained on."""
    # numpy has no bfloat16, in which some tokenizers answer
    encoded = encoded.float() if encoded.is_floating_point() else encoded
    values = encoded.cpu().numpy()
    with np.errstate(over="ignore"):  # then it is infinite
        rows = values.astype(dtype)
    where = f"the latents of frames {span.start} to {span.stop - 1}"
    if spec.kind == "discrete":
        if values.min() < 0 or values.max() >= spec.codebook_size:
            raise ValueError(
                f"{where} have codes from {values.min()} to {values.max()}, but the codebook has "
                f"{spec.codebook_size}; train the tokenizer again with --restart"
            )
    elif not np.isfinite(rows).all():
        raise ValueError(
            f"{where} are not finite numbers of {np.dtype(dtype).name} (the largest is "
            f"{np.abs(values).max():.3g}); train the tokenizer again with --restart"
        )
    return rows
