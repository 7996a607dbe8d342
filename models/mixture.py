"""A mixture of normal distributions over continuous actions.

Letters: B states, M components, A action numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal


class ActionMixture:
    """Several ways to act: the mean of two ways round an obstacle leads into it."""

    def __init__(self, logits: Tensor, means: Tensor, spreads: Tensor) -> None:
        """logits: (B, M); means and spreads: (B, M, A)."""
        self.which = Categorical(logits=logits)
        self.parts = Independent(Normal(means, spreads), 1)
        self.whole = MixtureSameFamily(self.which, self.parts)

    def log_prob(self, actions: Tensor) -> Tensor:
        """(B, A) -> (B,)."""
        return self.whole.log_prob(actions)

    def sample(self) -> Tensor:
        """(B, A)."""
        return self.whole.sample()

    @property
    def mode(self) -> Tensor:
        """The mean of the likeliest component, (B, A)."""
        best = self.which.probs.argmax(-1)
        return self.parts.mean[torch.arange(len(best), device=best.device), best]

    def entropy(self) -> Tensor:
        """(B,): that of the choice and of the components, an upper bound of the mixture's."""
        return self.which.entropy() + (self.which.probs * self.parts.entropy()).sum(-1)
