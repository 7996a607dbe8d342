"""A mixture of normal distributions over continuous actions.

Letters: B states, M components, A action numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from models.layers.sampling import draw


class ActionMixture:
    """Several ways to act: the mean of two ways round an obstacle leads into it."""

    def __init__(self, logits: Tensor, means: Tensor, spreads: Tensor) -> None:
        """logits: (B, M); means and spreads: (B, M, A)."""
        self.means, self.spreads = means, spreads
        # unchecked: to look at what is given is to wait for a GPU
        self.which = Categorical(logits=logits, validate_args=False)
        parts = Normal(means, spreads, validate_args=False)
        self.parts = Independent(parts, 1, validate_args=False)
        self.whole = MixtureSameFamily(self.which, self.parts, validate_args=False)

    def log_prob(self, actions: Tensor) -> Tensor:
        """(B, A) -> (B,)."""
        return self.whole.log_prob(actions)

    def sample(self) -> Tensor:
        """(B, A)."""
        which = draw(self.which.probs)
        drawn = torch.randn_like(self.means) * self.spreads + self.means
        return drawn[torch.arange(len(which), device=which.device), which].detach()

    @property
    def mode(self) -> Tensor:
        """The mean of the likeliest component, (B, A)."""
        best = self.which.probs.argmax(-1)
        return self.parts.mean[torch.arange(len(best), device=best.device), best]

    def entropy(self) -> Tensor:
        """(B,): that of the choice and of the components, an upper bound of the mixture's."""
        return self.which.entropy() + (self.which.probs * self.parts.entropy()).sum(-1)
