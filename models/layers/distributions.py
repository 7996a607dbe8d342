"""Distributions over actions.

Letters: B rows, M modes, A action numbers, F factors, L labels of all factors together.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from data.actions import ActionSpec
from models.layers.sampling import sample_categorical


class GaussianMixture:
    """A mixture of Gaussians over continuous actions, for data with several modes."""

    def __init__(self, logits: Tensor, means: Tensor, stds: Tensor) -> None:
        """logits: (B, M); means, stds: (B, M, A)."""
        self.means, self.stds = means, stds
        # unchecked: a check waits for the GPU
        self.mixture_distribution = Categorical(logits=logits, validate_args=False)
        components = Normal(means, stds, validate_args=False)
        self.component_distribution = Independent(components, 1, validate_args=False)
        self.mixture = MixtureSameFamily(
            self.mixture_distribution, self.component_distribution, validate_args=False
        )

    def log_prob(self, actions: Tensor) -> Tensor:
        """(B, A) -> (B,)."""
        return self.mixture.log_prob(actions)

    def sample(self) -> Tensor:
        """(B, A)."""
        return self.rsample().detach()

    def rsample(self) -> Tensor:
        """(B, A), with the gradient of the mean and deviation of the mode that is sampled."""
        index = sample_categorical(self.mixture_distribution.probs.detach())
        samples = torch.randn_like(self.means) * self.stds + self.means
        return samples[torch.arange(len(index), device=index.device), index]

    @property
    def mode(self) -> Tensor:
        """Mean of the likeliest mode, (B, A)."""
        index = self.mixture_distribution.probs.argmax(-1)
        return self.component_distribution.mean[
            torch.arange(len(index), device=index.device), index
        ]

    def entropy(self) -> Tensor:
        """(B,) nats: of the choice plus of the modes, an upper bound of the mixture's."""
        return self.mixture_distribution.entropy() + (
            self.mixture_distribution.probs * self.component_distribution.entropy()
        ).sum(-1)


class MultiCategorical:
    """One categorical for each factor of a code (VPT's factored head, arXiv:2206.11795)."""

    def __init__(self, logits: Tensor, actions: ActionSpec) -> None:
        """logits: (B, L), concatenated over factors."""
        self.actions = actions
        self.dists = [
            Categorical(logits=factor, validate_args=False)  # a check waits for the GPU
            for factor in logits.split(list(actions.factor_sizes), dim=-1)
        ]

    def log_prob(self, codes: Tensor) -> Tensor:
        """(B,) codes -> (B,) nats."""
        choices = self.actions.unravel(codes).unbind(-1)
        factor_choices = zip(self.dists, choices, strict=True)
        return torch.stack([factor.log_prob(choice) for factor, choice in factor_choices]).sum(0)

    def sample(self) -> Tensor:
        """Sample a code for each row: (B,)."""
        return self.actions.ravel(
            torch.stack([sample_categorical(factor.probs) for factor in self.dists], -1)
        )

    @property
    def mode(self) -> Tensor:
        """Likeliest code of each row: (B,)."""
        return self.actions.ravel(torch.stack([factor.mode for factor in self.dists], -1))

    def entropy(self) -> Tensor:
        """(B,) nats."""
        return torch.stack([factor.entropy() for factor in self.dists]).sum(0)
