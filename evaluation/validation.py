"""Validation while a model is trained: by its role, where the method has no way of its own.

The metric that best.pt is chosen by is the method's (`best` in models/method.py).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from data.clips import Clips
from data.shards.episode_dataset import EpisodeDataset
from evaluation.measures.metrics import (
    code_flip_rate,
    mse,
    patch_change_rate,
    pooled_psnr,
    psnr,
    ssim,
)
from evaluation.measures.open_loop import HORIZONS, imagine, open_loop
from evaluation.measures.sample_clips import sample_clips
from evaluation.measures.world_clips import horizons_within, world_clips
from models.method import TrainableModule, Validates
from models.tokenizers.codes import code_counts, perplexity
from models.tokenizers.tokenizer import Tokenizer
from models.world import World
from pipeline.batches.clip_batches import ClipBatches

Metrics = dict[str, float]
PSNR_HORIZONS = (1, 4, 8, 16)


def validate_own(
    model: TrainableModule,
    dataset: EpisodeDataset,
    device: torch.device,
    latents: np.ndarray | None = None,
    num_clips: int = 256,
) -> Metrics:
    """Validate a method as it says itself, on held-out clips of the fields that it needs."""
    assert isinstance(model, Validates)
    clips = Clips(dataset, "validation", model.clip_length, memory_limit=0)
    indices, _ = sample_clips(clips, num_clips, seed=0)
    batch = ClipBatches(clips, model.needs, latents).batch(indices)
    return model.validate(batch.to(device))


def validate_tokenizer(
    model: Tokenizer, dataset: EpisodeDataset, device: torch.device, num_clips: int = 256
) -> tuple[Metrics, list[Tensor]]:
    """Measure reconstruction on held-out frames, and flicker of codes from each to the next.

    Still images have no next frame, and no flicker.  Returns the metrics, and eight frames with
    their reconstructions: (8, 3, H, W) each.
    """
    length = _validation_length(model, dataset)
    held_out = Clips(dataset, "validation", length, memory_limit=0)
    indices, _ = sample_clips(held_out, num_clips, seed=0)
    clips = held_out.frames_of(indices).to(device)  # (B, T, 3, H, W)
    codes = torch.cat([model.encode_clip(part) for part in clips.split(64)])
    decoded = torch.cat([model.decode_clip(part) for part in codes.split(64)])
    # with all the past that the two frames are encoded with
    at = model.temporal_context - 1
    truth, codes = clips[:, at:], codes[:, at:]
    original, reconstruction = truth[:, 0], decoded[:, at]
    metrics = {
        "psnr": float(psnr(original, reconstruction).clamp(max=60).mean()),
        "psnr_pooled": pooled_psnr(mse(original, reconstruction)),
        "ssim": float(ssim(original, reconstruction).mean()),
    }
    if model.latents.kind == "discrete":
        counts = code_counts(codes, model.latents)
        if truth.shape[1] > 1:
            metrics["patch_change_rate"] = float(patch_change_rate(truth, model.latents.grid))
            metrics["code_flip_rate"] = float(code_flip_rate(codes))
        metrics |= {
            "codes_used": float((counts > 0).sum()),
            "perplexity": float(perplexity(counts)),
        }
    return metrics, [original[:8], reconstruction[:8]]


def check_held_out(model: Tokenizer, dataset: EpisodeDataset) -> None:
    """Raise ValueError now, not at the first validation, where no episode is long enough."""
    own = isinstance(model, Validates)
    length = model.clip_length if own else _validation_length(model, dataset)
    Clips(dataset, "validation", length, flag="--model.clip-length")


def _validation_length(model: Tokenizer, dataset: EpisodeDataset) -> int:
    """Frames of a clip: two, with the past of the first, or one where no episode has two."""
    longest = max((dataset.length(e) for e in dataset.episodes("validation")), default=2)
    return model.temporal_context + min(1, longest - 1)


def _held_out(world: World, dataset: EpisodeDataset) -> tuple[Clips, list[int]]:
    """Clips as long as an open loop is, and its horizons, as far as episodes go."""
    horizons = horizons_within(dataset, "validation", world.context, HORIZONS)
    length = world.context + max(horizons)
    # these clips are read once: the whole split is not kept for them
    clips = world_clips(world, dataset, "validation", length, memory_limit=0)
    return clips, horizons


def validate_world(world: World, dataset: EpisodeDataset, num_clips: int) -> Metrics:
    """Measure a world in an open loop; `psnr` is the mean over horizons, as far as episodes go."""
    clips, horizons = _held_out(world, dataset)
    measured = open_loop(world, clips, horizons, num_clips=num_clips)
    at = {horizon: index for index, horizon in enumerate(horizons)}
    metrics = {"psnr": sum(measured["psnr"]) / len(horizons)}
    for horizon in [h for h in PSNR_HORIZONS if h in at]:
        metrics[f"psnr_{horizon}"] = measured["psnr"][at[horizon]]
    if 8 in at:
        metrics["copy_last_psnr_8"] = measured["copy_last_psnr"][at[8]]
    if 4 in at:
        metrics["delta_psnr_4"] = measured["delta_psnr"][at[4]]
    return metrics


def rollout_rows(world: World, dataset: EpisodeDataset, num_clips: int = 3) -> list[Tensor]:
    """Rows of images: true futures, and below each the model rollout."""
    held_out, horizons = _held_out(world, dataset)
    clip = held_out.batch(sample_clips(held_out, num_clips, seed=0)[0])
    context = world.context
    imagined = imagine(world, clip.frames, clip.actions, context, horizons)
    truth = clip.frames[:, [context - 1 + h for h in horizons]]
    return [row for pair in zip(truth, imagined, strict=True) for row in pair]
