"""What controllers would have done where somebody did something: imitation on held-out frames.

Letters: B frames, n of them in all, F factors of an action.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.actions import ActionSpec
from data.shards import Recordings
from evaluation.measures.intervals import bootstrap
from evaluation.measures.key_metrics import as_choices, key_scores, nothing
from evaluation.measures.sample_clips import spread_windows
from models.controllers.discrete_goal_policy import GoalCodes
from models.layers.multi_categorical import Choices


class Habit:
    """Chooses as often as in codes (n,), each factor by itself, whatever is seen.

    A label was chosen once more than it was (add-one smoothing), so that none is impossible.
    """

    def __init__(self, spec: ActionSpec, codes: Tensor) -> None:
        self.spec = as_choices(spec)
        pairs = zip(self.spec.split(codes).unbind(1), self.spec.factor_sizes, strict=True)
        counts = [torch.bincount(chosen, minlength=size) + 1 for chosen, size in pairs]
        self.logits = torch.cat(counts).log()

    def distribution(self, latents: Tensor) -> Choices:
        return Choices(self.logits.to(latents.device).expand(len(latents), -1), self.spec)


def habits(known: Recordings) -> dict[str, Habit]:
    """What controllers stand beside: the training split's frequencies, and doing nothing.

    `no_op` is the habit of as many actions as the training split has, all of them nothing: its
    likelihood is that of a point, smoothed by one of each label.
    """
    spec = as_choices(known.actions)
    rows = np.repeat(np.isin(np.arange(len(known)), known.episodes("train")), known.lengths)
    codes = torch.from_numpy(known.read_rows("actions", 0, known.total)[rows]).long()
    still = spec.join(nothing(spec)).expand(len(codes))
    return {"most_frequent": Habit(spec, codes), "no_op": Habit(spec, still)}


@torch.inference_mode()
def agreement(
    world: Any,
    policies: dict[str, Any],
    clips: Any,
    frames: int = 4000,
    batch_size: int = 256,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure policies by name on held-out frames, each seen by itself.

    policies: what has a `distribution(latents)` over codes, or a `policy` that has.  clips: windows
    of a frame or more, the first of which is looked at; one that is shown goals sees the last, too,
    to which the recorded action has led.  Gives, for each, nats of the recorded action, and of the
    likeliest one how often it is the recorded, as a whole and by factor, and F1 by key.
    """
    chosen, sources = spread_windows(clips, frames, seed)
    found: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in policies}
    recorded: list[Tensor] = []
    for start in range(0, len(chosen), batch_size):
        clip = clips.batch(chosen[start : start + batch_size])
        codes, latents = clip.actions[:, 0], world.encode(clip.frames[:, 0])
        goal = world.encode(clip.frames[:, -1])
        recorded.append(codes)
        for name, policy in policies.items():
            shown = (latents, goal) if isinstance(policy, GoalCodes) else (latents,)
            wish = getattr(policy, "policy", policy).distribution(*shown)
            nats = wish.log_prob(codes.to(latents.device))
            found[name].append((nats.cpu().double(), wish.mode.cpu()))
    codes, spec = torch.cat(recorded), as_choices(clips.actions)
    return {
        name: _row(spec, codes, torch.cat([n for n, _ in parts]), torch.cat([m for _, m in parts]),
                   sources, seed)
        for name, parts in found.items()
    }  # fmt: skip


def _row(
    spec: ActionSpec, codes: Tensor, nats: Tensor, likeliest: Tensor, sources: np.ndarray, seed: int
) -> dict[str, Any]:
    """Recorded codes, their log-likelihoods and the likeliest codes, each (n,) -> figures."""
    low, high = bootstrap(nats.numpy(), sources, seed)
    truth, choices = spec.split(codes), spec.split(likeliest)
    same = (truth == choices).double()
    names = [factor.name for factor in spec.factors]
    return {
        "n": len(codes),
        "sources": len(np.unique(sources)),
        "log_likelihood": float(nats.mean()),
        "log_likelihood_low": low,
        "log_likelihood_high": high,
        "agreement": float(same.amin(1).mean()),
        "by_factor": dict(zip(names, same.mean(0).tolist(), strict=True)),
        **key_scores(spec, truth, choices),
    }
