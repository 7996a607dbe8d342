"""Maps from latent actions to true ones by few labeled steps, and how right they are.

Letters: n held-out steps.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.shards.episode_dataset import EpisodeDataset
from evaluation.measures.intervals import bootstrap, bootstrap_means, confidence_interval
from evaluation.readers.transitions import Transitions, read_transitions
from models.action_map import ActionMap, fit_action_map
from models.world import World
from pipeline.inference.action_maps import map_path, read_action_map, save_action_map

BUDGETS = (50, 200, 1000)


def cached_action_map(
    run: Path,
    world: World,
    dataset: EpisodeDataset,
    budget: int,
    fingerprint: str | None,
    seed: int = 0,
) -> ActionMap | None:
    """Load the map of a budget, or learn it from labeled steps of training episodes and save it.

    None where the data has no true actions, has fewer steps, or actions that are places without the
    agent's own.
    """
    facts = {"dynamics": fingerprint, "shards": dataset.fingerprint, "seed": seed}
    path = map_path(run, budget)
    try:
        known, of = read_action_map(path)
    except (ValueError, OSError):
        known, of = None, {}
    if known is not None and of == facts:
        return known
    if not dataset.has("actions") or not dataset.episodes("train"):
        return None
    labeled = read_transitions(world, dataset, "train", budget, seed)
    if len(labeled) < budget or (dataset.actions.pointer and labeled.places is None):
        return None
    codes, actions, places = as_tensors(labeled)
    action_map = fit_action_map(world.actions, dataset.actions, codes, actions, places)
    save_action_map(path, action_map, facts)
    return action_map


def measure_action_map(action_map: ActionMap, test: Transitions) -> dict[str, Any]:
    """Compare what a map says of held-out steps with what was inferred, and with the true actions.

    `to_latent`: the share of steps whose true action is mapped to the inferred code, next to
    `chance`, always the commonest one. `to_true`: the same share for true codes, and R2 for
    continuous actions.
    """
    codes, actions, places = as_tensors(test)
    right = (action_map.to_latent(actions, places) == codes).double().numpy()
    low, high = bootstrap(right, test.sources)
    result: dict[str, Any] = {
        "n": len(codes),
        "labels": action_map.budget,
        "to_latent": float(right.mean()),
        "to_latent_low": low,
        "to_latent_high": high,
        "chance": float(np.bincount(test.codes).max() / len(codes)),
    }
    found = action_map.to_true(codes, places)
    if action_map.true.kind == "discrete":
        scores = (found == actions).double().numpy()
        low, high = bootstrap(scores, test.sources)
        _, counts = np.unique(actions.numpy(), return_counts=True)
        return result | {"to_true": float(scores.mean()), "to_true_low": low, "to_true_high": high,
                         "to_true_chance": float(counts.max() / len(codes))}  # fmt: skip
    spec = action_map.true
    truth, predicted = spec.normalize(actions), spec.normalize(found)
    if places is not None:
        truth, predicted = (values - spec.normalize(places) for values in (truth, predicted))
    error = (predicted - truth).square().sum(1)
    spread = (truth - truth.mean(0)).square().sum(1).clamp(min=1e-12)
    both = torch.stack([error, spread], 1).double().numpy()
    means = bootstrap_means(both, test.sources)
    low_r2, high_r2 = confidence_interval(1 - means[:, :1] / means[:, 1:])
    r2 = float(1 - both[:, 0].sum() / both[:, 1].sum())
    return result | {"to_true_r2": r2, "to_true_r2_low": float(low_r2[0]),
                     "to_true_r2_high": float(high_r2[0])}  # fmt: skip


def as_tensors(steps: Transitions) -> tuple[Tensor, Tensor, Tensor | None]:
    """Give codes (n,), true actions (n,) or (n, A), and places (n, A)."""
    assert steps.actions is not None
    places = None if steps.places is None else torch.from_numpy(steps.places).float()
    return torch.from_numpy(steps.codes), torch.from_numpy(steps.actions), places
