"""The order of examples: a function of the step, so that resuming needs the step alone."""

from __future__ import annotations

from functools import lru_cache

import numpy as np


def batch_indices(num_examples: int, batch_size: int, step: int, seed: int) -> np.ndarray:
    """Return the examples of batch `step`: (batch_size,) int64 in [0, num_examples).

    Each epoch is a permutation of all examples; a batch may span two epochs.
    """
    if num_examples < 1:
        raise ValueError("there are no examples to put in order")
    positions = step * batch_size + np.arange(batch_size, dtype=np.int64)
    epochs, within = np.divmod(positions, num_examples)
    order = np.empty(batch_size, np.int64)
    for epoch in np.unique(epochs):
        in_epoch = epochs == epoch
        order[in_epoch] = _permutation(num_examples, seed, int(epoch))[within[in_epoch]]
    return order


@lru_cache(maxsize=4)
def _permutation(num_examples: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(num_examples)
