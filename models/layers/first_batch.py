"""Mean and scale of the data, taken from the first batch of a training."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class FirstBatch(nn.Module):
    """Mean and standard deviation of what `collect` is given, over all axes but the last ones.

    The mean is 0 and the scale 1 until `update`, which a model calls in `after_step`.
    """

    SMALLEST = 0.05
    """Least scale of a number, as a share of the largest: some hardly change in a batch."""
    mean: Tensor
    std: Tensor  # zeros until it is known

    def __init__(self, shape: tuple[int, ...], median: bool = False) -> None:
        """median: take it for the mean; what passes by does not shift it."""
        super().__init__()
        self.shape, self.median = shape, median
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("std", torch.zeros(shape))
        self._known = False
        self._pending: list[Tensor] = []  # of each micro-batch

    @property
    def known(self) -> bool:
        """They are taken.  A Python value once it is True, since reading one waits for a GPU."""
        if not self._known:
            self._known = bool((self.std > 0).any())
        return self._known

    @property
    def scale(self) -> Tensor:
        """The standard deviation, above 0."""
        largest = self.std.max()
        return torch.where(largest > 0, self.std.clamp(min=self.SMALLEST * largest), 1.0)

    def collect(self, values: Tensor) -> None:
        """values: (..., *shape), of one micro-batch."""
        if not self.known:
            self._pending.append(values.detach().float().flatten(0, -len(self.shape) - 1))

    def update(self) -> None:
        """Take both from what was collected, once."""
        if self._pending:
            values = torch.cat(self._pending)
            self._pending = []
            self.mean.copy_(values.median(0).values if self.median else values.mean(0))
            self.std.copy_(values.std(0, correction=0))
