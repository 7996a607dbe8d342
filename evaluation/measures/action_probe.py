"""Probes of the true action in a latent one before it is quantized, linear; held out by episode.

Letters: n steps, K numbers of a latent action, Y of a true one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from evaluation.measures.intervals import bootstrap, bootstrap_means, confidence_interval
from evaluation.measures.probe import ridge_predict
from evaluation.readers.pair_reader import read_pairs
from evaluation.readers.transitions import Transitions

MAX_LABELS = 64


def action_probe(
    train: Transitions,
    test: Transitions,
    steps: int,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> dict[str, Any] | None:
    """Predict motions, by R2, or true codes, by accuracy, from latent actions on held-out episodes.

    `r2` or `accuracy` of the linear probe; `floor_` of a network that sees the first frame, and
    `ceiling_` of one that sees both, each fitted for `steps` steps on the same. None where the true
    actions are not known, or the latent ones not shown.
    """
    targets, held_out = _targets(train), _targets(test)
    if train.vectors is None or test.vectors is None or targets is None or held_out is None:
        return None
    if targets.shape[1] != held_out.shape[1]:
        count = max(targets.shape[1], held_out.shape[1])
        targets, held_out = _widened(targets, count), _widened(held_out, count)
    x, x_test = (torch.from_numpy(t.vectors).float() for t in (train, test))  # type: ignore[arg-type]
    mean, std = x.mean(0), x.std(0).clamp(min=1e-6)
    x, x_test = (x - mean) / std, (x_test - mean) / std
    are_codes, average = _are_codes(train), targets.mean(0)
    if are_codes:
        linear = discriminant_scores(x, targets, x_test)
    else:
        linear = ridge_predict(x, targets - average, x_test) + average
    predictions = {
        "": linear,
        "floor_": read_pairs(train.frames, targets, test.frames, steps, True, seed, device),
        "ceiling_": read_pairs(train.frames, targets, test.frames, steps, False, seed, device),
    }
    result: dict[str, Any] = {
        "n": len(held_out),
        "n_train": len(targets),
        "of": "codes" if are_codes else "motion",
    }
    for name, predicted in predictions.items():
        scores = _accuracy if are_codes else _r2
        found = scores(predicted, held_out, test.sources)
        result |= {f"{name}{key}": value for key, value in found.items()}
    return result


def discriminant_scores(x: Tensor, one_hot: Tensor, x_test: Tensor) -> Tensor:
    """Score classes by linear discriminant analysis (Fisher 1936): (n, K), (n, Y), (m, K) ->
    (m, Y); a class that does not occur scores -inf."""
    counts = one_hot.sum(0)
    means = one_hot.mT @ x / counts.clamp(min=1)[:, None]
    rest = x - one_hot @ means
    covariance = rest.mT @ rest / len(x) + 1e-3 * torch.eye(x.shape[1])
    weights = torch.linalg.solve(covariance, means.mT)  # (K, Y)
    prior = (counts / counts.sum()).log()
    return x_test @ weights - (means.mT * weights).sum(0) / 2 + prior


def _are_codes(steps: Transitions) -> bool:
    return steps.actions is not None and steps.actions.ndim == 1


def _targets(steps: Transitions) -> Tensor | None:
    """(n, Y) float: one-hot codes, or motions."""
    if not _are_codes(steps):
        return None if steps.motion is None else torch.from_numpy(steps.motion).float()
    assert steps.actions is not None
    codes = torch.from_numpy(steps.actions)
    if int(codes.max()) >= MAX_LABELS:
        return None
    return torch.nn.functional.one_hot(codes).float()


def _widened(values: Tensor, count: int) -> Tensor:
    return torch.nn.functional.pad(values, (0, count - values.shape[1]))


def _accuracy(predicted: Tensor, truth: Tensor, sources: np.ndarray) -> dict[str, float]:
    right = (predicted.argmax(1) == truth.argmax(1)).double().numpy()
    low, high = bootstrap(right, sources)
    return {"accuracy": float(right.mean()), "accuracy_low": low, "accuracy_high": high}


def _r2(predicted: Tensor, truth: Tensor, sources: np.ndarray) -> dict[str, float]:
    error = (predicted - truth).square().sum(1)
    spread = (truth - truth.mean(0)).square().sum(1)
    both = torch.stack([error, spread], 1).double().numpy()
    if both[:, 1].sum() == 0:
        return {"r2": 0.0, "r2_low": 0.0, "r2_high": 0.0}
    means = bootstrap_means(both, sources)
    low, high = confidence_interval(1 - means[:, :1] / np.maximum(means[:, 1:], 1e-12))
    return {"r2": float(1 - both[:, 0].sum() / both[:, 1].sum()), "r2_low": float(low[0]),
            "r2_high": float(high[0])}  # fmt: skip
