"""Does a rollout keep the state? A linear probe of true latents, read from predicted ones.

The probe is fitted to true latents of training episodes, and never sees a prediction.  Beside it
stand the same probe of the true latents, which no rollout can be expected to beat, and of the
start's, as if nothing had moved.

Letters: n frames, B transitions, k steps, P patches, D width, Y targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.shards.episode_dataset import EpisodeDataset
from evaluation.latents.transitions import AT_ONCE, Transitions
from evaluation.measures.intervals import bootstrap_means, confidence_interval
from evaluation.measures.probe import TARGETS, correlations, fit_ridge, probe_targets
from evaluation.readers.fit_estimator import layout_of, sample_frames
from pipeline.serve.latent_model import WorldModel

TRAIN_FRAMES = 20_000  # of which latents of some thousand numbers need many


def measure_state_probe(
    model: WorldModel,
    dataset: EpisodeDataset,
    found: Transitions,
    horizons: Sequence[int],
    seed: int = 0,
) -> dict[str, Any]:
    """Pearson's r by horizon and target: `predicted` with its interval over sources, `true` and
    `no_change`; empty where the states are not those of Push-T."""
    if found.states is None or layout_of(dataset) is None:
        return {}
    frames, states, _ = sample_frames(dataset, "train", TRAIN_FRAMES, seed)
    parts = [model.encode(part.to(model.spec.device)).cpu() for part in frames.split(256)]
    x, targets = torch.cat(parts).flatten(1), probe_targets(states)
    mean, std = x.mean(0), x.std(0).clamp(min=1e-6)
    center, spread = targets.mean(0), targets.std(0).clamp(min=1e-6)
    rollouts = [
        model.rollout(start, actions).cpu()
        for start, actions in zip(
            found.start.split(AT_ONCE), found.actions.split(AT_ONCE), strict=True
        )
    ]
    weights = fit_ridge((x - mean) / std, (targets - center) / spread)
    predicted, result = torch.cat(rollouts), {}
    for k in horizons:
        read = torch.cat([predicted[:, k - 1], found.truth[:, k - 1].cpu(), found.start.cpu()])
        values = ((read.flatten(1) - mean) / std @ weights).chunk(3)
        truth = probe_targets(found.states[:, k])
        kinds = zip(("predicted", "true", "no_change"), values, strict=True)
        result[str(k)] = {kind: correlations(value, truth) for kind, value in kinds}
        result[str(k)]["interval"] = _intervals(values[0], truth, found.sources)
    return result


def _intervals(
    predicted: Tensor, truth: Tensor, sources: np.ndarray
) -> dict[str, tuple[float, float]]:
    """95%, by a bootstrap over sources; empty where there is one source."""
    if len(np.unique(sources)) < 2:
        return {}
    x, y = ((v - v.mean(0)).double().numpy() for v in (predicted, truth))
    moments = np.concatenate([x, y, x * y, x * x, y * y], axis=1)
    x, y, xy, xx, yy = np.split(bootstrap_means(moments, sources), 5, axis=1)
    r = (xy - x * y) / np.sqrt((xx - x * x) * (yy - y * y)).clip(min=1e-8)
    low, high = confidence_interval(r)
    return dict(zip(TARGETS, zip(low.tolist(), high.tolist(), strict=True), strict=True))
