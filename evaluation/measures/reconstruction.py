"""How well the tokenizer gives held-out frames back, and whether its codes are still.

Letters: n frames.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evaluation.measures.intervals import resampled_means, spread
from evaluation.measures.metrics import (
    SAME,
    capped_psnr,
    codes_changing,
    mse,
    patches_changing,
    pooled_psnr,
    ssim,
)
from evaluation.measures.sample_clips import spread_windows
from models.tokenizers.codes import code_counts, perplexity

BANDS = {"dark": (0.0, 0.1), "dim": (0.1, 0.3), "light": (0.3, math.inf)}
"""Least brightness of a frame, the mean of its pixels from 0 to 1, and what it stays below."""

AT_ONCE = 128  # frames: what lies between layers then stays in a cache, 1.6 times as fast as of 864


@torch.inference_mode()
def measure_tokenizer(
    tokenizer: Any, clips: Any, windows: int, device: torch.device, seed: int = 0
) -> dict[str, Any]:
    """Measure reconstruction, codebook use and flicker on windows of held-out clips."""
    chosen, sources = spread_windows(clips, windows, seed)
    about = tokenizer.latents
    grid, codes_held = about.grid, about.codes * about.codebooks
    errors, similar, changing, moving, bright = [], [], [], [], []
    used = torch.zeros(about.codebooks, about.codes, dtype=torch.long)
    together = max(1, AT_ONCE // clips.frames)
    for first in range(0, len(chosen), together):
        frames = clips.batch(chosen[first : first + together]).frames.to(device)
        count, length = frames.shape[:2]
        flat = frames.flatten(0, 1)
        latents = tokenizer.encode(flat)
        given_back = tokenizer.decode(latents)
        errors.append(mse(flat, given_back).view(count, length).cpu())
        similar.append(ssim(flat, given_back).view(count, length).cpu())
        bright.append(brightness(flat).cpu())
        moving.append(patches_changing(frames, grid) * count)
        if codes_held:
            used += code_counts(latents, about).cpu()
            changing.append(codes_changing(latents.view(count, length, -1)) * count)
    error, similarity = torch.cat(errors), torch.cat(similar)
    means = torch.stack([error.mean(1), similarity.mean(1)], 1).double().numpy()
    low, high = spread(resampled_means(means, sources, seed=seed))
    return {
        "n": error.numel(),
        "psnr": pooled_psnr(error),
        "psnr_low": float(-10 * np.log10(max(high[0], SAME))),
        "psnr_high": float(-10 * np.log10(max(low[0], SAME))),
        "psnr_mean_of_frames": capped_psnr(error),
        "ssim": float(similarity.mean()),
        "ssim_low": float(low[1]),
        "ssim_high": float(high[1]),
        "bands": by_band(torch.cat(bright), error.flatten(), similarity.flatten()),
        "codes_used": int((used > 0).sum()) if codes_held else None,
        "codes": codes_held or None,
        "perplexity": float(perplexity(used)) if codes_held else None,
        "codes_changing": sum(changing) / len(chosen) if codes_held else None,
        "patches_changing": sum(moving) / len(chosen),
    }


def brightness(frames: Tensor) -> Tensor:
    """(n, 3, H, W) uint8 -> (n,), the mean of pixels from 0 to 1."""
    return frames.float().flatten(1).mean(1) / 255


def by_band(bright: Tensor, errors: Tensor, similar: Tensor) -> dict[str, dict[str, Any]]:
    """PSNR and SSIM of the frames in each of BANDS, from (n,) of each; None where there is none."""
    found = {}
    for name, (least, below) in BANDS.items():
        inside = (bright >= least) & (bright < below)
        count = int(inside.sum())
        found[name] = {
            "n": count,
            "psnr": pooled_psnr(errors[inside]) if count else None,
            "ssim": float(similar[inside].mean()) if count else None,
        }
    return found
