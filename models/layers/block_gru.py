"""A GRU whose products are block-diagonal (DreamerV3, arXiv:2301.04104).

Letters: B rows, G blocks, E width of a block.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from kernels import gru_step
from models.layers.transformer import RmsNorm


class BlockLinear(nn.Module):
    """One linear layer for each block of a vector."""

    def __init__(self, num_blocks: int, in_dim: int, out_dim: int) -> None:
        super().__init__()
        bound = in_dim**-0.5
        self.weight = nn.Parameter(torch.empty(num_blocks, in_dim, out_dim).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        """(B, G, in) -> (B, G, out)."""
        return torch.bmm(x.transpose(0, 1), self.weight).transpose(0, 1)


class BlockGru(nn.Module):
    """Every block reads its own part of the state, and all of the input."""

    def __init__(self, dim: int, input_dim: int, num_blocks: int) -> None:
        super().__init__()
        block_dim = dim // num_blocks
        self.num_blocks = num_blocks
        self.input_layer = nn.Linear(input_dim, dim)
        self.state_layer = BlockLinear(num_blocks, block_dim, block_dim)
        self.norm = RmsNorm(dim)
        self.gates = BlockLinear(num_blocks, block_dim, 3 * block_dim)
        self.gate_bias = nn.Parameter(torch.zeros(num_blocks, 3 * block_dim))

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        """Input (B, input_dim), state (B, G E) -> the next state, (B, G E) in the state's dtype."""
        blocks = state.unflatten(-1, (self.num_blocks, -1))
        mixed = self.input_layer(x) + self.state_layer(blocks).flatten(1)
        mixed = silu(self.norm(mixed)).unflatten(-1, (self.num_blocks, -1))
        parts = self.gates(mixed) + self.gate_bias
        return gru_step(parts, blocks).flatten(1)
