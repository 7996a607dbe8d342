"""Groups of categorical variables: a discrete latent that passes gradients (DreamerV2,
arXiv:2010.02193; DreamerV3, arXiv:2301.04104).

Letters: G groups, C classes of each.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from models.layers.sampling import Sampling

UNIMIX = 0.01
"""Share of a uniform distribution in every categorical, so that no KL is infinite (section 3)."""


LEAST = 1e-4
"""Least probability that has a logit of its own: 9 nats from a certain one."""


def unimix_probs(logits: Tensor) -> Tensor:
    """Probabilities in float32, mixed with a uniform distribution: (..., C) -> (..., C)."""
    return unimix(torch.softmax(logits.float(), dim=-1))


def unimix(probs: Tensor) -> Tensor:
    """Mix probabilities with a uniform distribution: (..., C) -> (..., C)."""
    return probs * (1 - UNIMIX) + UNIMIX / probs.shape[-1]


def logits_of(probs: Tensor) -> Tensor:
    """Logits, in float32, whose `unimix_probs` are these mixed probabilities, (..., C), but for
    `LEAST`, which bounds them."""
    share = UNIMIX / probs.shape[-1]
    return ((probs.float() - share) / (1 - UNIMIX)).clamp(min=LEAST).log()


def straight_through(probs: Tensor, index: Tensor) -> Tensor:
    """The one-hot vector of `index`, (..., G), with the gradient of its probabilities, (..., G, C)
    (Bengio et al., arXiv:1308.3432)."""
    return _StraightThrough.apply(probs, index)  # type: ignore[return-value]


def choose(probs: Tensor, sampling: Sampling | None) -> Tensor:
    """The expected one-hot vectors, (..., G, C), which are the probabilities; with `sampling` the
    likeliest or sampled ones."""
    return probs if sampling is None else straight_through(probs, sampling.sample(probs.log()))


def sample(probs: Tensor, exponential: Tensor) -> Tensor:
    """Sampled one-hot vectors, from exponential random numbers of the shape of `probs`."""
    return straight_through(probs, (probs.detach() / exponential).argmax(-1))


def kl_balance(posterior: Tensor, prior: Tensor, free_nats: float) -> tuple[Tensor, Tensor, Tensor]:
    """KL of the posterior from the prior: with the gradient of the prior alone, and of the
    posterior alone, each at least `free_nats` (equation 5); and as it is, without gradient.

    Probabilities, (..., G, C) -> nats of all groups together, three of (...).
    """
    dynamics = _kl(posterior.detach(), prior)
    representation = _kl(posterior, prior.detach())
    kl = dynamics.detach()
    return dynamics.clamp(min=free_nats), representation.clamp(min=free_nats), kl


def _kl(left: Tensor, right: Tensor) -> Tensor:
    return (left * (left.log() - right.log())).flatten(-2).sum(-1)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, probs: Tensor, index: Tensor) -> Tensor:
        return torch.zeros_like(probs).scatter_(-1, index[..., None], 1.0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None
