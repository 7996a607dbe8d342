"""How well the tokenizer gives held-out frames back, and whether its codes are still.

Letters: n frames.
"""

from __future__ import annotations

import math
from typing import Any

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
from evaluation.measures.sample_clips import sample_clips
from models.tokenizers.codes import code_counts, perplexity

BRIGHTNESS_BINS = {"dark": (0.0, 0.1), "dim": (0.1, 0.3), "light": (0.3, math.inf)}
"""Least brightness of a frame, the mean of its pixels from 0 to 1, and what it stays below."""

BATCH_FRAMES = (
    128  # frames: what lies between layers then stays in a cache, 1.6 times as fast as of 864
)


@torch.inference_mode()
def measure_tokenizer(
    tokenizer: Any, clips: Any, num_clips: int, device: torch.device, seed: int = 0
) -> dict[str, Any]:
    """Measure reconstruction, codebook use and flicker on windows of held-out clips."""
    indices, sources = sample_clips(clips, num_clips, seed)
    spec = tokenizer.latents
    grid, num_codes = spec.grid, spec.codes * spec.codebooks
    errors, ssims, flip_rates, change_rates, brightnesses = [], [], [], [], []
    counts = torch.zeros(spec.codebooks, spec.codes, dtype=torch.long)
    batch_size = max(1, BATCH_FRAMES // clips.frames)
    for first in range(0, len(indices), batch_size):
        frames = clips.batch(indices[first : first + batch_size]).frames.to(device)
        count, length = frames.shape[:2]
        flat = frames.flatten(0, 1)
        latents = tokenizer.encode(flat)
        reconstructed = tokenizer.decode(latents)
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
        "bands": by_brightness(torch.cat(brightnesses), error.flatten(), similarity.flatten()),
        "codes_used": int((counts > 0).sum()) if num_codes else None,
        "codes": num_codes or None,
        "perplexity": float(perplexity(counts)) if num_codes else None,
        "codes_changing": sum(flip_rates) / len(indices) if num_codes else None,
        "patches_changing": sum(change_rates) / len(indices),
    }


def brightness(frames: Tensor) -> Tensor:
    """(n, 3, H, W) uint8 -> (n,), the mean of pixels from 0 to 1."""
    return frames.float().flatten(1).mean(1) / 255


def by_brightness(brightnesses: Tensor, errors: Tensor, ssims: Tensor) -> dict[str, dict[str, Any]]:
    """PSNR and SSIM of the frames in each of BANDS, from (n,) of each; None where there is none."""
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
