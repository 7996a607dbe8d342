"""A mixture of normal distributions over continuous actions.

Letters: B states, M components, A action numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from models.layers.sampling import sample_categorical


class GaussianMixture:
    """Several ways to act: the mean of two ways round an obstacle leads into it."""

    def __init__(self, logits: Tensor, means: Tensor, stds: Tensor) -> None:
        """logits: (B, M); means and spreads: (B, M, A)."""
        self.means, self.stds = means, stds
        # unchecked: to look at what is given is to wait for a GPU
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
        index = sample_categorical(self.mixture_distribution.probs)
        samples = torch.randn_like(self.means) * self.stds + self.means
        return samples[torch.arange(len(index), device=index.device), index].detach()

    @property
    def mode(self) -> Tensor:
        """The mean of the likeliest component, (B, A)."""
        index = self.mixture_distribution.probs.argmax(-1)
        return self.component_distribution.mean[
            torch.arange(len(index), device=index.device), index
        ]

    def entropy(self) -> Tensor:
        """(B,): that of the choice and of the components, an upper bound of the mixture's."""
        return self.mixture_distribution.entropy() + (
            self.mixture_distribution.probs * self.component_distribution.entropy()
        ).sum(-1)
