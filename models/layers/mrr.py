"""Mean reciprocal rank: does a prediction come nearest to what really followed? (IWM,
arXiv:2403.00504)

Letters: Q predictions, C candidates, D width.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

NUM_CANDIDATES = 256
Distance = Literal["l2", "cosine"]


def reciprocal_ranks(
    predicted: Tensor, candidates: Tensor, index: Tensor, distance: Distance = "l2"
) -> Tensor:
    """One over the rank of each right candidate by its distance: (Q, D), (C, D), (Q,) -> (Q,).

    Candidates that are as far as the right one count half: a prediction that does not tell them
    apart has the middle rank.  Chance among C is the sum of 1 / k over C (0.0239 for 256).
    """
    if distance == "cosine":
        predicted, candidates = (
            torch.nn.functional.normalize(x.float(), dim=-1) for x in (predicted, candidates)
        )
    # differences, not a matrix product: near candidates differ by less than its rounding
    far = (predicted.float()[:, None] - candidates.float()).square().sum(-1)
    own = far.gather(1, index[:, None])
    before = (far < own).sum(1)
    ties = (far == own).sum(1) - 1
    return 1 / (1 + before + ties / 2)


def chance(num_candidates: int = NUM_CANDIDATES) -> float:
    """Mean reciprocal rank of a random order."""
    return sum(1 / rank for rank in range(1, num_candidates + 1)) / num_candidates
