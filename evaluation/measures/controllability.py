"""Do imagined films show what was commanded? An inverse model reads the actions back from them.

Letters: n windows, H steps imagined, F factors of an action, V of them that stand for numbers.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from data.actions import ActionSpec
from evaluation.measures.key_metrics import correlation, key_scores, turning
from evaluation.measures.open_loop import imagine
from evaluation.measures.sample_clips import spread_windows

Read = tuple[Tensor, Tensor]
"""Choices (n, H, F) and expected numbers (n, H, V)."""


class Reader(Protocol):
    """What reads actions from films (evaluation/readers/inverse_dynamics.py)."""

    actions: ActionSpec

    def read(self, films: Tensor) -> Read:
        """(n, 1 + H, 3, height, width) uint8 -> what was done between the frames."""
        ...


@torch.inference_mode()
def controllability(
    world: Any,
    clips: Any,
    inverse: Reader,
    steps: int,
    windows: int = 256,
    batch_size: int = 64,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, Any]:
    """Compare the actions read from films with those that were taken, over all H steps.

    clips: held-out windows of at least context + H frames.  `real` are the true frames, which says
    how well the inverse model reads; `reconstructed` the same through the tokenizer; `imagined`
    what the world makes of the same actions; `other_actions` those imagined films against the
    actions of another window, which is what agrees by chance.
    """
    context = world.context
    chosen, sources = spread_windows(clips, windows, seed)
    if len(chosen) < 2:
        raise ValueError(
            f"controllability compares windows with each other, and {windows} of {len(clips)} "
            f"were asked for; give --windows 2 or more, and an episode longer than "
            f"{context + steps} frames"
        )
    read: dict[str, list[Read]] = {"real": [], "reconstructed": [], "imagined": []}
    taken: list[Tensor] = []
    batches = range(0, len(chosen), batch_size)
    for start in tqdm(batches, "controllability", disable=not progress, leave=False):
        clip = clips.batch(chosen[start : start + batch_size])
        frames, actions = clip.frames.to(world.device), clip.actions.to(world.device)
        truth = frames[:, context - 1 : context + steps]
        flat = truth.flatten(0, 1)
        films = {
            "real": truth,
            "reconstructed": world.tokenizer.decode(world.tokenizer.encode(flat)).view_as(truth),
            "imagined": imagine(world, frames, actions, context, range(steps + 1)),
        }
        for name, film in films.items():
            choices, turns = inverse.read(film)
            read[name].append((choices.cpu(), turns.cpu()))
        taken.append(inverse.actions.split(clip.actions[:, context - 1 : context - 1 + steps]))
    labels = {name: (torch.cat([c for c, _ in parts]), torch.cat([t for _, t in parts]))
              for name, parts in read.items()}  # fmt: skip
    told = torch.cat(taken)
    # Windows are in order of their episodes, so half the list away lies another one.
    others = told.roll(len(told) // 2, 0)
    return {
        "n": len(chosen),
        "sources": len(np.unique(sources)),
        "steps": steps,
        **{name: compare(inverse.actions, told, *found) for name, found in labels.items()},
        "other_actions": compare(inverse.actions, others, *labels["imagined"]),
    }


def compare(spec: ActionSpec, told: Tensor, choices: Tensor, turns: Tensor) -> dict[str, Any]:
    """Two (n, H, F) choices and (n, H, V) expected numbers -> F1 by key, correlation by factor."""
    told, choices, turns = told.flatten(0, 1), choices.flatten(0, 1), turns.flatten(0, 1)
    found = {}
    for column, (name, at) in enumerate(turning(spec).items()):
        commanded = torch.tensor(spec.factors[at].values)[told[:, at]]
        found[name] = correlation(commanded, turns[:, column])
    return {"n": len(told), **key_scores(spec, told, choices), "correlation": found}
