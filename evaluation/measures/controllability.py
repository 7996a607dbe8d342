"""Controllability: an inverse dynamics model predicts the actions from rollouts of the world.

Letters: n clips, H rollout steps, F factors of an action, V of them that stand for numbers.
"""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from data.actions import ActionSpec
from evaluation.measures.key_metrics import correlation, key_scores, numeric_factors
from evaluation.measures.open_loop import RolloutWorld, imagine
from evaluation.measures.sample_clips import ClipSource, sample_clips

S = TypeVar("S")
ActionPrediction = tuple[Tensor, Tensor]
"""Choices (n, H, F) and expected numbers (n, H, V)."""


class ActionPredictor(Protocol):
    """Predicts actions from videos (evaluation/readers/inverse_dynamics.py)."""

    actions: ActionSpec

    def predict(self, frames: Tensor) -> ActionPrediction:
        """(n, 1 + H, 3, height, width) uint8 -> the actions between the frames."""
        ...


@torch.inference_mode()
def controllability(
    world: RolloutWorld[S],
    clips: ClipSource,
    idm: ActionPredictor,
    steps: int,
    num_clips: int = 256,
    batch_size: int = 64,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, Any]:
    """Compare the actions predicted from videos with those that were taken, over all H steps.

    clips: held-out, of at least context + H frames.  `real` are the true frames: how well the
    inverse dynamics model predicts at all; `reconstructed` the same through the tokenizer;
    `imagined` the model rollout under the same actions; `shuffled_actions` that rollout against
    the actions of another clip: agreement by chance.
    """
    context = world.context
    indices, sources = sample_clips(clips, num_clips, seed)
    if len(indices) < 2:
        raise ValueError(
            f"controllability compares clips with each other, and {num_clips} of {len(clips)} "
            f"were asked for; give --num-clips 2 or more, and an episode longer than "
            f"{context + steps} frames"
        )
    predictions: dict[str, list[ActionPrediction]] = {
        "real": [], "reconstructed": [], "imagined": []
    }  # fmt: skip
    true_choices: list[Tensor] = []
    batches = range(0, len(indices), batch_size)
    for start in tqdm(batches, "controllability", disable=not progress, leave=False):
        clip = clips.batch(indices[start : start + batch_size])
        frames, actions = clip.frames.to(world.device), clip.actions.to(world.device)
        truth = frames[:, context - 1 : context + steps]
        flat = truth.flatten(0, 1)
        videos = {
            "real": truth,
            "reconstructed": world.reconstruct(flat).view_as(truth),
            "imagined": imagine(world, frames, actions, context, range(steps + 1)),
        }
        for name, video in videos.items():
            choices, values = idm.predict(video)
            predictions[name].append((choices.cpu(), values.cpu()))
        true_choices.append(idm.actions.unravel(clip.actions[:, context - 1 : context - 1 + steps]))
    predicted = {name: (torch.cat([c for c, _ in parts]), torch.cat([v for _, v in parts]))
              for name, parts in predictions.items()}  # fmt: skip
    targets = torch.cat(true_choices)
    # Clips are in order of their episodes, so half the list away lies another episode.
    shuffled = targets.roll(len(targets) // 2, 0)
    return {
        "n": len(indices),
        "sources": len(np.unique(sources)),
        "steps": steps,
        **{name: compare(idm.actions, targets, *found) for name, found in predicted.items()},
        "shuffled_actions": compare(idm.actions, shuffled, *predicted["imagined"]),
    }


def compare(spec: ActionSpec, targets: Tensor, predicted: Tensor, values: Tensor) -> dict[str, Any]:
    """Score two (n, H, F) choices and (n, H, V) expected numbers: F1 by key, r by factor."""
    targets, predicted, values = (
        targets.flatten(0, 1),
        predicted.flatten(0, 1),
        values.flatten(0, 1),
    )
    correlations = {}
    for column, (name, index) in enumerate(numeric_factors(spec).items()):
        true_values = torch.tensor(spec.factors[index].values)[targets[:, index]]
        correlations[name] = correlation(true_values, values[:, column])
    return {"n": len(targets), **key_scores(spec, targets, predicted), "correlation": correlations}
