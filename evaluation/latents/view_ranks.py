"""MRR of a model of images, by transformation, with intervals over images."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from evaluation.measures.intervals import bootstrap
from models.layers import views

KEYS = ("mrr", "mrr_cosine", "mrr_pooled")


class RanksViews(Protocol):
    def mrr(self, frames: Tensor, draw: views.Draw) -> Mapping[str, Tensor]: ...


def measure_mrr(
    model: RanksViews, frames: Tensor, sources: np.ndarray, seed: int
) -> dict[str, dict[str, float]]:
    """frames: (B, 3, H, W) uint8.  sources: (B,) the image that each is cut from.

    Returns for all photometric views together, and for each transformation, the means of `KEYS`
    and the interval of `mrr`.
    """
    drawn: dict[str, views.Draw] = {"all": views.draw_photometric}
    drawn |= {kind: partial(views.draw, kind=kind) for kind in views.TRANSFORMATIONS}
    found: dict[str, dict[str, float]] = {}
    for name, draw in tqdm(drawn.items(), "MRR"):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            ranks = {key: values.cpu().numpy() for key, values in model.mrr(frames, draw).items()}
        low, high = bootstrap(ranks["mrr"], sources)
        found[name] = {key: float(ranks[key].mean()) for key in KEYS} | {"low": low, "high": high}
    return found
