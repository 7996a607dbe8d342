"""Whether a latent action means the same in other episodes: what it did where it was inferred,
against what it does where it was not.

Letters: n clips, B of a batch, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from evaluation.measures.intervals import bootstrap
from evaluation.measures.other_sources import other_sources
from models.dynamics.dynamics import State
from models.world import World

ReadMotion = Callable[[Tensor, Tensor], Tensor]
"""Frames before and after, two (B, 3, H, W) uint8 -> (B, 2), on the CPU."""


@torch.inference_mode()
def cross_episode_cosines(
    world: World,
    states: list[State],
    codes: np.ndarray,
    motion: np.ndarray,
    read: ReadMotion,
    sources: np.ndarray,
    still: float,
) -> dict[str, Any] | None:
    """Apply the code that was inferred in each clip in another clip, and compare the motions.

    states: batches of n in all, before each step; codes: (n,) inferred of these steps; motion:
    (n, 2), what really happened, and `still` the length below which that is nothing, so that the
    step is left out. Gives the mean cosine `same_code`; `other_code`, when the code of a third clip
    is applied, is the baseline; `own_clip`, where it was inferred. A code that moves nothing has a
    cosine of 0. None where fewer than two clips move.
    """
    moving = np.flatnonzero(np.linalg.norm(motion, axis=1) >= still)
    if len(np.unique(sources[moving])) < 2:
        return None
    n = len(codes)
    other = other_sources(sources, n // 2)
    third = other_sources(sources, n // 2 + max(1, n // 4))
    given = {"same_code": codes[other], "other_code": codes[third], "own_clip": codes}
    wanted = {"same_code": motion[other], "other_code": motion[other]}
    imagined = {name: _imagined(world, states, own, read) for name, own in given.items()}
    result: dict[str, Any] = {"n": len(moving), "sources": len(np.unique(sources[moving]))}
    for name, predicted in imagined.items():
        truth = wanted.get(name, motion)
        rows = np.flatnonzero(np.linalg.norm(truth, axis=1) >= still)
        cosine = _cosine(truth[rows], predicted[rows], still)
        result[name] = float(cosine.mean())
        result[f"{name}_low"], result[f"{name}_high"] = bootstrap(cosine, sources[rows])
    return result


def _imagined(world: World, states: list[State], codes: np.ndarray, read: ReadMotion) -> np.ndarray:
    """The motions, (n, 2), that codes (n,) cause in the world."""
    parts, first = [], 0
    for state in tqdm(states, "codes", leave=False):
        own = torch.from_numpy(codes[first : first + len(state)]).to(world.device)
        after = world.step(state, own)
        parts.append(read(world.decode(state), world.decode(after)).cpu())
        first += len(state)
    return torch.cat(parts).numpy()


def _cosine(truth: np.ndarray, predicted: np.ndarray, still: float) -> np.ndarray:
    """Cosines of two (n, 2); 0 where a prediction moves less than a quarter of `still`."""
    norms = np.linalg.norm(truth, axis=1) * np.linalg.norm(predicted, axis=1)
    moves = np.linalg.norm(predicted, axis=1) >= still / 4
    return np.where(moves, (truth * predicted).sum(1) / np.maximum(norms, 1e-12), 0.0)
