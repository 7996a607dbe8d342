"""Actions and positions as vectors.

Letters: P patches, A action numbers, F wavelengths, D width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from data.actions import ActionSpec


def fourier_features(x: Tensor, wavelengths: Tensor) -> Tensor:
    """(..., A) -> (..., A * 2 * F): sine and cosine of each number at each wavelength."""
    phases = x[..., None] * (2 * math.pi / wavelengths)
    return torch.cat([phases.sin(), phases.cos()], dim=-1).flatten(-2)


class ActionEmbedding(nn.Module):
    """One vector for an action: Fourier features of its numbers, a table of codes, or a sum over a
    code's factors."""

    is_of_actions = True
    wavelengths: Tensor
    offsets: Tensor

    def __init__(self, spec: ActionSpec, dim: int) -> None:
        super().__init__()
        self.spec = spec
        if spec.kind == "discrete":
            sizes = spec.factor_sizes or (spec.size,)
            self.table = nn.Embedding(sum(sizes), dim)
            nn.init.normal_(self.table.weight, std=0.02)
            offsets = torch.tensor([0, *sizes[:-1]]).cumsum(0)
            self.register_buffer("offsets", offsets, persistent=False)
        else:
            # normalized actions span 2: from the whole range down to a sixteenth of it
            wavelengths = 4.0 * 2.0 ** -torch.arange(6)
            self.register_buffer("wavelengths", wavelengths, persistent=False)
            self.linear = nn.Linear(spec.size * (1 + 2 * len(wavelengths)), dim)

    def forward(self, actions: Tensor) -> Tensor:
        """(..., A) in [-1, 1] or (...) codes -> (..., D)."""
        if self.spec.factors:
            return self.table(self.spec.unravel(actions) + self.offsets).sum(-2)
        if self.spec.kind == "discrete":
            return self.table(actions)
        features = torch.cat([actions, fourier_features(actions, self.wavelengths)], dim=-1)
        return self.linear(features)


class PointerEmbedding(nn.Module):
    """Offset of an action's point from each patch."""

    is_of_actions = True
    centers: Tensor
    wavelengths: Tensor

    def __init__(self, grid: tuple[int, int], dim: int) -> None:
        super().__init__()
        rows, columns = grid
        y = (torch.arange(rows) + 0.5) / rows * 2 - 1
        x = (torch.arange(columns) + 0.5) / columns * 2 - 1
        centers = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1)
        self.register_buffer("centers", centers.reshape(-1, 2), persistent=False)
        cell_size = 2.0 / max(rows, columns)
        wavelengths = cell_size * 2.0 ** torch.arange(0, 6)
        self.register_buffer("wavelengths", wavelengths, persistent=False)
        self.linear = nn.Linear(2 * (2 + 2 * len(wavelengths)), dim)
        self.cell_size = cell_size

    def forward(self, actions: Tensor) -> Tensor:
        """(..., A) in [-1, 1], the point first -> (..., P, D)."""
        offset = actions[..., None, :2] - self.centers
        local_offset = torch.tanh(offset / self.cell_size)
        features = torch.cat(
            [offset, local_offset, fourier_features(offset, self.wavelengths)], dim=-1
        )
        return self.linear(features)
