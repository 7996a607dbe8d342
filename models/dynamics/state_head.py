"""Reads a simulator's state, such as where things are, of what a world knows.

Letters: F width of a world's state, S numbers of a simulator's state, D columns of it: angles as
sine and cosine.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.dynamics.rssm_cell import Dense
from models.layers.first_batch import FirstBatch


class StateHead(nn.Module):
    """It learns from the world, and the world nothing from it: no gradient goes back.

    Columns are in standard deviations of the first batch.
    """

    def __init__(self, dim: int, hidden_dim: int, state_names: tuple[str, ...]) -> None:
        super().__init__()
        self.is_angle = [name.endswith("angle") for name in state_names]
        columns = len(self.is_angle) + sum(self.is_angle)
        self.hidden = nn.Sequential(Dense(dim, hidden_dim), Dense(hidden_dim, hidden_dim))
        self.out = nn.Linear(hidden_dim, columns)
        self.columns = FirstBatch((columns,))

    def forward(self, features: Tensor) -> Tensor:
        """(..., F) -> (..., D), in standard deviations from the mean."""
        return self.out(self.hidden(features.detach()))

    def loss(self, features: Tensor, states: Tensor) -> Tensor:
        """Mean squared error: (..., F), (..., S) in the simulator's units -> ().

        0 until the first batch is known: errors in pixels would be far larger than any after them.
        """
        columns, read = self._columns(states), self(features).float()
        if self.training and not self.columns.known:
            self.columns.collect(columns)
            return 0 * read.sum()
        return (read - self.standardize(columns)).square().mean()

    def standardize(self, columns: Tensor) -> Tensor:
        """(..., D) -> (..., D); the units of columns have nothing to do with each other."""
        std = self.columns.std
        return (columns - self.columns.mean) / torch.where(std > 0, std, 1.0)

    def _columns(self, states: Tensor) -> Tensor:
        """(..., S) -> (..., D)."""
        states = states.float()
        parts = [
            torch.stack([x.sin(), x.cos()], dim=-1) if angle else x[..., None]
            for x, angle in zip(states.unbind(-1), self.is_angle, strict=True)
        ]
        return torch.cat(parts, dim=-1)
