"""A linear layer for numbers that have more digits than 16 bits."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Float32Linear(nn.Module):
    """A linear layer that computes in float32, also under autocast."""

    def __init__(self, linear: nn.Linear) -> None:
        """linear: the layer whose weights it takes over."""
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return nn.functional.linear(x.float(), self.weight, self.bias)
