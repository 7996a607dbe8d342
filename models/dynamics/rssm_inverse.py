"""Inverse dynamics: the action is read from the frames before and after it, so that what it moves
is in them (Pathak et al., arXiv:1705.05363, equation 2).

Letters: B clips, T frames, S width of z, A action numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from data.actions import ActionSpec
from models.dynamics.rssm_cell import Dense


class InverseDynamics(nn.Module):
    """Reads the action that leads from one z to the next."""

    def __init__(self, stoch_dim: int, hidden_dim: int, actions: ActionSpec) -> None:
        super().__init__()
        if actions.kind == "none":
            raise ValueError(
                "--model.inverse-weight reads actions, and these recordings have none; leave it out"
            )
        self.discrete = actions.kind == "discrete"
        self.hidden = Dense(2 * stoch_dim, hidden_dim)
        self.out = nn.Linear(hidden_dim, actions.size)

    def forward(self, z: Tensor) -> Tensor:
        """z (B, T, S) -> logits of codes or normalized numbers, (B, T - 1, A)."""
        return self.out(self.hidden(torch.cat([z[:, :-1], z[:, 1:]], dim=-1)))

    def loss(self, z: Tensor, actions: Tensor, is_first: Tensor | None) -> Tensor:
        """Squared error of the numbers together, or cross-entropy of the codes, the mean over all
        steps within an episode: z (B, T, S), actions (B, T, ...), is_first (B, T) bool."""
        read, actions = self(z).float(), actions[:, : z.shape[1] - 1]
        if self.discrete:
            errors = nn.functional.cross_entropy(read.movedim(-1, 1), actions, reduction="none")
        else:
            errors = (read - actions).square().sum(-1)
        if is_first is None:
            return errors.mean()
        within = (~is_first[:, 1:]).to(errors.dtype)
        return (errors * within).sum() / within.sum().clamp(min=1)
