"""The batch of every training step, as a function of the step."""

from __future__ import annotations

from collections.abc import Iterable, Sized
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from accelerate import Accelerator
from torch.utils.data import DataLoader, Dataset

from data.batch import Batch


class BatchDataset(Sized, Protocol):
    """Anything that gives a batch for an array of indices."""

    def batch(self, indices: np.ndarray) -> Batch: ...


class StepDataset(Dataset[Any]):
    """Item s is the batch of step s, or this process's rows of it."""

    def __init__(
        self, dataset: BatchDataset, batch_size: int, seed: int, accelerator: Accelerator
    ) -> None:
        self.dataset, self.batch_size, self.seed = dataset, batch_size, seed
        self.rank, self.world_size = accelerator.process_index, accelerator.num_processes

    def __getitem__(self, step: int) -> Any:
        order = batch_indices(len(self.dataset), self.batch_size, step, self.seed)
        return self.dataset.batch(order[self.rank :: self.world_size])


def load_batches(
    dataset: Dataset[Any], steps: range, num_workers: int, flag: str
) -> Iterable[Batch]:
    """Give the batch of each step, loaded in this process, or ahead by `num_workers` others.

    flag: what chooses their number, for messages.
    """
    if num_workers:
        from pipeline.batches.worker_batches import load_in_workers

        return load_in_workers(dataset, steps, num_workers, flag)
    return DataLoader(dataset, batch_size=None, sampler=steps)  # type: ignore[arg-type]


def hash_seed(*numbers: int) -> int:
    """Mix integers into a seed."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


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
