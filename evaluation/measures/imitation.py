"""What controllers would have done where somebody did something: imitation on held-out frames.

Letters: B frames, n of them in all, F factors of an action.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.actions import ActionSpec
from data.shards import EpisodeDataset
from evaluation.measures.intervals import bootstrap
from evaluation.measures.key_metrics import as_factored, key_scores, no_op_choices
from evaluation.measures.sample_clips import sample_clips
from models.controllers.discrete_goal_policy import DiscreteGoalPolicy
from models.layers.multi_categorical import MultiCategorical


class Habit:
    """Chooses as often as in codes (n,), each factor by itself, whatever is seen.

    A label was chosen once more than it was (add-one smoothing), so that none is impossible.
    """

    def __init__(self, spec: ActionSpec, codes: Tensor) -> None:
        self.spec = as_factored(spec)
        factors = zip(self.spec.unravel(codes).unbind(1), self.spec.factor_sizes, strict=True)
        counts = [torch.bincount(labels, minlength=size) + 1 for labels, size in factors]
        self.logits = torch.cat(counts).log()

    def distribution(self, latents: Tensor) -> MultiCategorical:
        return MultiCategorical(self.logits.to(latents.device).expand(len(latents), -1), self.spec)


def marginal_baselines(dataset: EpisodeDataset) -> dict[str, Habit]:
    """What controllers stand beside: the training split's frequencies, and doing nothing.

    `no_op` is the habit of as many actions as the training split has, all of them nothing: its
    likelihood is that of a point, smoothed by one of each label.
    """
    spec = as_factored(dataset.actions)
    in_train = np.repeat(
        np.isin(np.arange(len(dataset)), dataset.episodes("train")), dataset.lengths
    )
    codes = torch.from_numpy(dataset.read_rows("actions", 0, dataset.num_frames)[in_train]).long()
    no_op = spec.ravel(no_op_choices(spec)).expand(len(codes))
    return {"most_frequent": Habit(spec, codes), "no_op": Habit(spec, no_op)}


@torch.inference_mode()
def imitation(
    world: Any,
    policies: dict[str, Any],
    clips: Any,
    num_frames: int = 4000,
    batch_size: int = 256,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure policies by name on held-out frames, each seen by itself.

    policies: what has a `distribution(latents)` over codes, or a `policy` that has.  clips: windows
    of a frame or more, the first of which is looked at; one that is shown goals sees the last, too,
    to which the recorded action has led.  Gives, for each, nats of the recorded action, and of the
    likeliest one how often it is the recorded, as a whole and by factor, and F1 by key.
    """
    indices, sources = sample_clips(clips, num_frames, seed)
    results: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in policies}
    targets: list[Tensor] = []
    for start in range(0, len(indices), batch_size):
        clip = clips.batch(indices[start : start + batch_size])
        codes, latents = clip.actions[:, 0], world.encode(clip.frames[:, 0])
        goal = world.encode(clip.frames[:, -1])
        targets.append(codes)
        for name, policy in policies.items():
            inputs = (latents, goal) if isinstance(policy, DiscreteGoalPolicy) else (latents,)
            dist = getattr(policy, "policy", policy).distribution(*inputs)
            log_probs = dist.log_prob(codes.to(latents.device))
            results[name].append((log_probs.cpu().double(), dist.mode.cpu()))
    codes, spec = torch.cat(targets), as_factored(clips.actions)
    return {
        name: _metrics(spec, codes, torch.cat([n for n, _ in parts]), torch.cat([m for _, m in parts]),
                   sources, seed)
        for name, parts in results.items()
    }  # fmt: skip


def _metrics(
    spec: ActionSpec,
    codes: Tensor,
    log_probs: Tensor,
    modes: Tensor,
    sources: np.ndarray,
    seed: int,
) -> dict[str, Any]:
    """Recorded codes, their log-likelihoods and the likeliest codes, each (n,) -> figures."""
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
        "agreement": float(correct.amin(1).mean()),
        "by_factor": dict(zip(names, correct.mean(0).tolist(), strict=True)),
        **key_scores(spec, truth, predicted),
    }
