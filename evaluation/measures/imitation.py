"""Imitation: how well policies predict the actions of the dataset on held-out frames.

Letters: B frames, n of them in all, F factors of an action.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from data.actions import ActionSpec
from data.shards.episode_dataset import EpisodeDataset
from evaluation.measures.intervals import bootstrap
from evaluation.measures.key_metrics import as_factored, key_scores, noop_choices
from evaluation.measures.sample_clips import ActionClips, sample_clips
from models.controllers.discrete_goal_policy import DiscreteGoalPolicy
from models.layers.distributions import MultiCategorical


class FrameEncoder(Protocol):
    """What this asks of a world."""

    def embed(self, frames: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 -> latents, as policies are given them."""
        ...


class MarginalBaseline:
    """Predicts each factor's frequencies in codes (n,), whatever the frame.

    Every label counts once more than it occurs (add-one smoothing), so that none is impossible.
    """

    def __init__(self, spec: ActionSpec, codes: Tensor) -> None:
        self.spec = as_factored(spec)
        factors = zip(self.spec.unravel(codes).unbind(1), self.spec.factor_sizes, strict=True)
        counts = [torch.bincount(labels, minlength=size) + 1 for labels, size in factors]
        self.logits = torch.cat(counts).log()

    def distribution(self, latents: Tensor) -> MultiCategorical:
        return MultiCategorical(self.logits.to(latents.device).expand(len(latents), -1), self.spec)


def marginal_baselines(dataset: EpisodeDataset) -> dict[str, MarginalBaseline]:
    """Give the baselines: the training split's frequencies, and the no-op.

    `noop` has the frequencies of as many actions as the training split has, all of them no-ops: a
    point mass, smoothed by one of each label.
    """
    spec = as_factored(dataset.actions)
    in_train = np.repeat(
        np.isin(np.arange(len(dataset)), dataset.episodes("train")), dataset.lengths
    )
    codes = torch.from_numpy(dataset.read_rows("actions", 0, dataset.num_frames)[in_train]).long()
    noop = spec.ravel(noop_choices(spec)).expand(len(codes))
    return {
        "most_frequent": MarginalBaseline(spec, codes),
        "noop": MarginalBaseline(spec, noop),
    }


@torch.inference_mode()
def imitation(
    world: FrameEncoder,
    policies: dict[str, Any],
    clips: ActionClips,
    num_frames: int = 4000,
    batch_size: int = 256,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure policies by name on held-out frames, without their history.

    policies: those with a `distribution(latents)` over codes, or a `policy` that has one; a
    DiscreteGoalPolicy is also given the last frame of the clip, as its goal.  clips: of one frame
    or more; policies are asked at the first.  Gives, for each, the log-likelihood of the dataset's
    action in nats, the accuracy of the most likely one, as a whole and by factor, and F1 by key.
    """
    indices, sources = sample_clips(clips, num_frames, seed)
    results: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in policies}
    targets: list[Tensor] = []
    for start in range(0, len(indices), batch_size):
        clip = clips.batch(indices[start : start + batch_size])
        codes, latents = clip.actions[:, 0], world.embed(clip.frames[:, 0])
        goal = world.embed(clip.frames[:, -1])
        targets.append(codes)
        for name, policy in policies.items():
            inputs = (latents, goal) if isinstance(policy, DiscreteGoalPolicy) else (latents,)
            dist = getattr(policy, "policy", policy).distribution(*inputs)
            log_probs = dist.log_prob(codes.to(latents.device))
            results[name].append((log_probs.cpu().double(), dist.mode.cpu()))
    codes, spec = torch.cat(targets), as_factored(clips.actions)
    metrics = {}
    for name, parts in results.items():
        log_probs, modes = (torch.cat(column) for column in zip(*parts, strict=True))
        metrics[name] = _metrics(spec, codes, log_probs, modes, sources, seed)
    return metrics


def _metrics(
    spec: ActionSpec,
    codes: Tensor,
    log_probs: Tensor,
    modes: Tensor,
    sources: np.ndarray,
    seed: int,
) -> dict[str, Any]:
    """Score the dataset's codes, their log-likelihoods and the most likely codes, each (n,)."""
    low, high = bootstrap(log_probs.numpy(), sources, seed)
    truth, predicted = spec.unravel(codes), spec.unravel(modes)
    correct = (truth == predicted).double()
    names = [factor.name for factor in spec.factors]
    return {
        "n": len(codes),
        "sources": len(np.unique(sources)),
        "log_likelihood": float(log_probs.mean()),
        "log_likelihood_low": low,
        "log_likelihood_high": high,
        "accuracy": float(correct.amin(1).mean()),
        "by_factor": dict(zip(names, correct.mean(0).tolist(), strict=True)),
        **key_scores(spec, truth, predicted),
    }
