"""Reconstruction of held-out frames by the tokenizer, codebook use and flicker.

Letters: n frames.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from evaluation.measures.intervals import bootstrap_means, confidence_interval
from evaluation.measures.metrics import (
    MIN_MSE,
    capped_psnr,
    code_flip_rate,
    mse,
    patch_change_rate,
    pooled_psnr,
    ssim,
)
from evaluation.measures.sample_clips import ClipSource, sample_clips
from models.tokenizers.codes import code_counts, perplexity
from models.tokenizers.tokenizer import LatentSpec

BRIGHTNESS_BINS = {"dark": (0.0, 0.1), "dim": (0.1, 0.3), "light": (0.3, math.inf)}
"""Lower and upper limit of a frame's brightness, the mean of its pixels from 0 to 1."""

BATCH_FRAMES = 128  # small enough for activations to stay in a CPU's cache


class Autoencoder(Protocol):
    """What this asks of a world (models/world.py)."""

    @property
    def device(self) -> torch.device: ...

    @property
    def latents(self) -> LatentSpec: ...

    def encode(self, frames: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 -> (B, N) codes or (B, P, D)."""
        ...

    def decode_latents(self, latents: Tensor) -> Tensor:
        """(B, N) codes or (B, P, D) -> (B, 3, H, W) uint8."""
        ...


@torch.inference_mode()
def measure_tokenizer(
    world: Autoencoder, clips: ClipSource, num_clips: int, seed: int = 0
) -> dict[str, Any]:
    """Measure reconstruction, codebook use and flicker on held-out clips."""
    indices, sources = sample_clips(clips, num_clips, seed)
    spec = world.latents
    grid, num_codes = spec.grid, spec.codebook_size * spec.num_codebooks
    errors, ssims, flip_rates, change_rates, brightnesses = [], [], [], [], []
    counts = torch.zeros(spec.num_codebooks, spec.codebook_size, dtype=torch.long)
    batch_size = max(1, BATCH_FRAMES // clips.clip_length)
    for first in range(0, len(indices), batch_size):
        frames = clips.batch(indices[first : first + batch_size]).frames.to(world.device)
        count, length = frames.shape[:2]
        flat = frames.flatten(0, 1)
        latents = world.encode(flat)
        reconstructed = world.decode_latents(latents)
        errors.append(mse(flat, reconstructed).view(count, length).cpu())
        ssims.append(ssim(flat, reconstructed).view(count, length).cpu())
        brightnesses.append(brightness(flat).cpu())
        change_rates.append(patch_change_rate(frames, grid) * count)
        if num_codes:
            counts += code_counts(latents, spec).cpu()
            flip_rates.append(code_flip_rate(latents.view(count, length, -1)) * count)
    error, similarity = torch.cat(errors), torch.cat(ssims)
    means = torch.stack([error.mean(1), similarity.mean(1)], 1).double().numpy()
    low, high = confidence_interval(bootstrap_means(means, sources, seed=seed))
    return {
        "n": error.numel(),
        "psnr": pooled_psnr(error),
        "psnr_low": float(-10 * np.log10(max(high[0], MIN_MSE))),
        "psnr_high": float(-10 * np.log10(max(low[0], MIN_MSE))),
        "psnr_mean_of_frames": capped_psnr(error),
        "ssim": float(similarity.mean()),
        "ssim_low": float(low[1]),
        "ssim_high": float(high[1]),
        "by_brightness": by_brightness(
            torch.cat(brightnesses), error.flatten(), similarity.flatten()
        ),
        "codes_used": int((counts > 0).sum()) if num_codes else None,
        "codebook_size": num_codes or None,
        "perplexity": float(perplexity(counts)) if num_codes else None,
        "code_flip_rate": sum(flip_rates) / len(indices) if num_codes else None,
        "patch_change_rate": sum(change_rates) / len(indices),
    }


def brightness(frames: Tensor) -> Tensor:
    """Average the pixels, from 0 to 1: (n, 3, H, W) uint8 -> (n,)."""
    return frames.float().flatten(1).mean(1) / 255


def by_brightness(brightnesses: Tensor, errors: Tensor, ssims: Tensor) -> dict[str, dict[str, Any]]:
    """Give PSNR and SSIM of the frames in each of BRIGHTNESS_BINS, from (n,) of each; None where it
    has none."""
    results = {}
    for name, (low, high) in BRIGHTNESS_BINS.items():
        mask = (brightnesses >= low) & (brightnesses < high)
        count = int(mask.sum())
        results[name] = {
            "n": count,
            "psnr": pooled_psnr(errors[mask]) if count else None,
            "ssim": float(ssims[mask].mean()) if count else None,
        }
    return results
