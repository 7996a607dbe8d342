"""delta-PSNR of inferred actions against drawn ones (Genie, arXiv:2402.15391, section 3).

Letters: n clips, B of a batch, T frames, C context frames, H steps, A codes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from data.clips import Clip
from evaluation.measures.intervals import bootstrap_means, confidence_interval
from evaluation.measures.metrics import MIN_MSE, mse
from evaluation.measures.open_loop import imagine
from evaluation.measures.sample_clips import sample_clips
from evaluation.measures.world_clips import InferredClips
from models.world import World

BATCH_SIZE = 32
MapActions = Callable[[Clip], Tensor]
"""A clip with its true actions -> the codes that stand for them, (B, T) int64."""


@torch.inference_mode()
def drawn_action_psnr(
    world: World,
    clips: InferredClips,
    frequencies: np.ndarray,
    steps: int,
    num_clips: int,
    seed: int = 0,
    mapped: MapActions | None = None,
) -> dict[str, Any]:
    """Roll out H steps by the actions inferred from the true future, by ones drawn from the codes'
    own `frequencies` (A,), and, with `mapped`, by what stands for the true ones.

    PSNR of frame H, of the mean squared error over clips; `delta_psnr` is inferred minus drawn,
    `mapped_delta_psnr` mapped minus drawn. Uniform draws would flatter a skewed codebook.
    """
    context = world.context
    indices, sources = sample_clips(clips, num_clips, seed)
    rng = np.random.default_rng(seed)
    errors: dict[str, list[Tensor]] = {}
    for part in tqdm(
        np.array_split(indices, -(-len(indices) // BATCH_SIZE)), "drawn actions", leave=False
    ):
        clip = clips.batch(part)
        frames = clip.frames.to(world.device)
        future = rng.choice(len(frequencies), (len(part), frames.shape[1]), p=frequencies)
        future_by_name = {"inferred": clip.actions, "drawn": torch.from_numpy(future)}
        if mapped is not None:
            future_by_name["mapped"] = mapped(clips.recorded(part))
        for name, taken in future_by_name.items():
            actions = torch.cat([clip.actions[:, : context - 1], taken[:, context - 1 :]], 1)
            found = imagine(world, frames, actions.to(world.device), context, [steps])[:, 0]
            errors.setdefault(name, []).append(mse(frames[:, context - 1 + steps], found).cpu())
    per_clip = torch.stack([torch.cat(parts) for parts in errors.values()], 1).double().numpy()
    psnr = dict(zip(errors, _psnr(per_clip.mean(0)), strict=True))
    resampled = dict(
        zip(errors, _psnr(bootstrap_means(per_clip, sources, seed=seed)).T, strict=True)
    )
    result: dict[str, Any] = {"n": len(indices), "sources": len(np.unique(sources)), "steps": steps}
    result |= {f"{name}_psnr": float(value) for name, value in psnr.items()}
    for name, key in (("inferred", "delta_psnr"), ("mapped", "mapped_delta_psnr")):
        if name in psnr:
            low, high = confidence_interval((resampled[name] - resampled["drawn"])[:, None])
            result[key] = float(psnr[name] - psnr["drawn"])
            result[f"{key}_low"], result[f"{key}_high"] = float(low[0]), float(high[0])
    return result


def _psnr(errors: np.ndarray) -> np.ndarray:
    return -10 * np.log10(np.maximum(errors, MIN_MSE))
