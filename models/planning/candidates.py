"""Candidates of a search: sequences of knots, and what is made of their costs.

Letters: B worlds, N candidates, H action blocks, E = H + 1 knots, A action numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor


def interpolate(knots: Tensor, action_block: int) -> Tensor:
    """Interpolate linearly: knots (..., E, A) -> actions (..., (E - 1) * action_block, A)."""
    steps = torch.arange(1, action_block + 1, device=knots.device, dtype=knots.dtype)
    fraction = steps[:, None] / action_block
    before, after = knots[..., :-1, None, :], knots[..., 1:, None, :]
    return (before + (after - before) * fraction).flatten(-3, -2)


def worst_if_not_finite(costs: Tensor) -> Tensor:
    """Give candidates whose cost is not finite the highest finite cost of their world: (B, N)."""
    finite = costs.isfinite()
    worst = torch.where(finite, costs, -torch.inf).amax(1, keepdim=True)
    return torch.where(finite, costs, worst.where(worst.isfinite(), torch.inf))


def elite_weights(costs: Tensor, num_elites: int) -> Tensor:
    """Weigh the cheapest candidates of each world equally, the others not: (B, N) -> (B, N)."""
    elites = costs.argsort(1)[:, :num_elites]
    return torch.zeros_like(costs).scatter(1, elites, 1 / elites.shape[1])


def weighted_moments(candidates: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over candidates: (B, N, E, A), (B, N) -> (B, 1, E, A) each."""
    weights = weights[..., None, None]
    mean = (weights * candidates).sum(1, keepdim=True)
    return mean, (weights * (candidates - mean).square()).sum(1, keepdim=True).sqrt()


def select_best(candidates: Tensor, costs: Tensor) -> tuple[Tensor, Tensor]:
    """(B, N, E, A), (B, N) -> the best candidate of each world, (B, E, A), and its cost, (B,)."""
    min_cost, index = costs.min(1)
    return candidates[torch.arange(len(candidates), device=candidates.device), index], min_cost


def goals_in_turn(goal: Tensor, num_samples: int) -> Tensor:
    """A goal for each of N candidates, (B, P, D) -> (B N, P, D); of a set of goals, (B, G, P, D),
    they take one after the other."""
    if goal.ndim > 3:
        turns = torch.arange(num_samples, device=goal.device) % goal.shape[1]
        return goal[:, turns].flatten(0, 1)
    return goal.repeat_interleave(num_samples, dim=0)
