"""A large batch is computed in parts, one a core.

PyTorch shares each operation between cores, and the small ones of a small model gain nothing by
that: two halves of a batch, each on a core of its own, do.  A small batch is left whole.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

LEAST_ROWS = 4  # of a part
GRAIN = 32_768  # numbers of which PyTorch gives a core at least as many (at::internal::GRAIN_SIZE)


def share_cores(numbers: int) -> RowThreads:
    """Return as many threads as PyTorch uses; numbers: of a row's latents.

    Where a row is too small for two cores, PyTorch has one from now on: its other threads would
    wait for work by spinning, on the cores of the parts.
    """
    threads = RowThreads(torch.get_num_threads())
    if numbers < GRAIN:
        torch.set_num_threads(1)
    return threads


class RowThreads:
    """Threads that compute a row each, or several, with one core each."""

    def __init__(self, count: int) -> None:
        """count: of threads; 1 computes all where it is asked."""
        self.count = count
        if count > 1:
            self._pool = ThreadPoolExecutor(count, "rows", lambda: torch.set_num_threads(1))

    def map(self, function: Callable[..., Tensor], *rows: Tensor) -> Tensor:
        """function(*rows), whose rows do not depend on each other: tensors (B, ...) -> (B, ...)."""
        parts = min(self.count, len(rows[0]) // LEAST_ROWS)
        if parts < 2:
            return function(*rows)
        inference = torch.is_inference_mode_enabled()  # a thread has modes of its own

        def of_part(*part: Tensor) -> Tensor:
            with torch.inference_mode(inference), torch.no_grad():
                return function(*part)

        chunks = zip(*(values.tensor_split(parts) for values in rows), strict=True)
        return torch.cat(list(self._pool.map(lambda part: of_part(*part), chunks)))
