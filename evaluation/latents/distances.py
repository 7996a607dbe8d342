"""Distances between predicted latents and true ones, and what they tell apart.

Letters: B transitions, k steps, P patches, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evaluation.latents.transitions import AT_ONCE, Transitions
from pipeline.serve.latent_model import LatentModel
from pipeline.serve.latent_report import QUANTILES

RESAMPLES = 500


def measure_distances(
    model: LatentModel, found: Transitions, horizons: Sequence[int]
) -> dict[str, Any]:
    """Quantiles of surprise and uncertainty by horizon, and areas under ROC curves of surprise."""
    predicted = _predict(model, found.start, found.actions)
    error = (predicted - found.truth)[:, 0]
    noise_std = float(error.square().mean().sqrt())
    moved = _predict(model, found.start + model.noise(noise_std), found.actions)
    # as many rows further: another image or episode, and another's actions
    shift = len(found.start) // 2
    cut = found.truth.roll(shift, 0)
    swapped = _predict(model, found.start, found.actions.roll(shift, 0))
    distance = {
        "surprise": _distance(model, predicted, found.truth),
        "uncertainty": _distance(model, predicted, moved),
        "scene_cut": _distance(model, predicted, cut),
        "swapped_actions": _distance(model, swapped, found.truth),
        "no_change": _distance(model, found.start[:, None].expand_as(found.truth), found.truth),
    }
    grid = np.linspace(0, 1, QUANTILES)
    return {
        "noise_std": noise_std,
        **{
            name: {str(k): np.quantile(distance[name][:, k - 1], grid).tolist() for k in horizons}
            for name in ("surprise", "uncertainty")
        },
        "medians": {
            name: {str(k): float(np.median(values[:, k - 1])) for k in horizons}
            for name, values in distance.items()
        },
        "auc": {
            name: {
                str(k): _auc(distance["surprise"][:, k - 1], distance[name][:, k - 1], found)
                for k in horizons
            }
            for name in ("scene_cut", "swapped_actions")
        },
        "uncertainty_rank_correlation": {
            str(k): rank_correlation(
                distance["uncertainty"][:, k - 1], distance["surprise"][:, k - 1]
            )
            for k in horizons
        },
    }


def area_under_roc(ordinary: np.ndarray, other: np.ndarray) -> float:
    """Probability that one of `other` is larger than one that is ordinary; a tie counts half."""
    order = np.sort(ordinary)
    below = np.searchsorted(order, other, "left") + np.searchsorted(order, other, "right")
    return float(below.mean() / (2 * len(order)))


def rank_correlation(x: np.ndarray, y: np.ndarray) -> float | None:
    """Spearman's, of numbers that differ; None of fewer than three."""
    if len(x) < 3:
        return None
    return float(np.corrcoef(x.argsort().argsort(), y.argsort().argsort())[0, 1])


def _auc(ordinary: np.ndarray, other: np.ndarray, found: Transitions) -> dict[str, float | None]:
    """With its interval, by a bootstrap over sources; None where there is one source."""
    rng = np.random.default_rng(0)
    names = np.unique(found.sources)
    rows = [np.flatnonzero(found.sources == name) for name in names]
    drawn = []
    for _ in range(RESAMPLES if len(names) > 1 else 0):
        index = np.concatenate([rows[i] for i in rng.integers(0, len(rows), len(rows))])
        drawn.append(area_under_roc(ordinary[index], other[index]))
    low, high = np.quantile(drawn, [0.025, 0.975]).tolist() if drawn else (None, None)
    return {"auc": area_under_roc(ordinary, other), "low": low, "high": high}


def _predict(model: LatentModel, start: Tensor, actions: Tensor) -> Tensor:
    """(B, P, D), (B, k, A) -> (B, k, P, D)."""
    parts = zip(start.split(AT_ONCE), actions.split(AT_ONCE), strict=True)
    return torch.cat([model.rollout(*part) for part in parts])


def _distance(model: LatentModel, one: Tensor, other: Tensor) -> np.ndarray:
    """(B, k, P, D) each -> (B, k): L2 between z_cls."""
    return (model.pool(one) - model.pool(other)).norm(dim=-1).double().cpu().numpy()
