"""How well the tokenizer gives held-out frames back, and whether its codes are still."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from evaluation.intervals import resampled_means, spread
from evaluation.metrics import (
    SAME,
    capped_psnr,
    codes_changing,
    mse,
    patches_changing,
    pooled_psnr,
    ssim,
)
from evaluation.windows import spread_windows
from models.codes import code_counts, perplexity


@torch.inference_mode()
def measure_tokenizer(
    tokenizer: Any, clips: Any, windows: int, device: torch.device, seed: int = 0
) -> dict[str, Any]:
    """Measure reconstruction, codebook use and flicker on windows of held-out clips."""
    chosen, sources = spread_windows(clips, windows, seed)
    about = tokenizer.latents
    grid, codes_held = about.grid, about.codes * about.codebooks
    errors, similar, changing, moving = [], [], [], []
    used = torch.zeros(about.codebooks, about.codes, dtype=torch.long)
    for first in range(0, len(chosen), 32):
        frames = clips.batch(chosen[first : first + 32]).frames.to(device)
        count, length = frames.shape[:2]
        flat = frames.flatten(0, 1)
        latents = tokenizer.encode(flat)
        given_back = tokenizer.decode(latents)
        errors.append(mse(flat, given_back).view(count, length).cpu())
        similar.append(ssim(flat, given_back).view(count, length).cpu())
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
        "codes_used": int((used > 0).sum()) if codes_held else None,
        "codes": codes_held or None,
        "perplexity": float(perplexity(used)) if codes_held else None,
        "codes_changing": sum(changing) / len(chosen) if codes_held else None,
        "patches_changing": sum(moving) / len(chosen),
    }
