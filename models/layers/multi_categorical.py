"""A distribution over codes that are made of independent choices.

Letters: B rows, F factors, L labels of all factors together.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Categorical

from data.actions import ActionSpec
from models.layers.sampling import sample_categorical


class MultiCategorical:
    """One categorical for each factor of a code (VPT's factored head, arXiv:2206.11795)."""

    def __init__(self, logits: Tensor, actions: ActionSpec) -> None:
        """logits: (B, L), the factors' one behind the other."""
        self.actions = actions
        self.dists = [
            Categorical(logits=part, validate_args=False)  # to check is to wait for a GPU
            for part in logits.split(list(actions.factor_sizes), dim=-1)
        ]

    def log_prob(self, codes: Tensor) -> Tensor:
        """(B,) codes -> (B,) nats."""
        choices = self.actions.unravel(codes).unbind(-1)
        factor_choices = zip(self.dists, choices, strict=True)
        return torch.stack([factor.log_prob(choice) for factor, choice in factor_choices]).sum(0)

    def sample(self) -> Tensor:
        """Draw a code for each row: (B,)."""
        return self.actions.ravel(
            torch.stack([sample_categorical(factor.probs) for factor in self.dists], -1)
        )

    @property
    def mode(self) -> Tensor:
        """The likeliest code of each row: (B,)."""
        return self.actions.ravel(torch.stack([factor.mode for factor in self.dists], -1))

    def entropy(self) -> Tensor:
        """(B,) nats."""
        return torch.stack([factor.entropy() for factor in self.dists]).sum(0)
