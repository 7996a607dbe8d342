"""The batch of every training step, as a function of the step."""

from __future__ import annotations

from collections.abc import Sized
from typing import Any, Protocol

import numpy as np
from accelerate import Accelerator
from torch.utils.data import Dataset

from data.batch import Batch
from data.batch_sampler import batch_indices
from pipeline.training.train_config import TrainConfig


class BatchDataset(Sized, Protocol):
    """Anything that gives a batch for an array of indices."""

    def batch(self, indices: np.ndarray) -> Batch: ...


class StepDataset(Dataset[Any]):
    """Item s is the batch of step s, or this process's rows of it."""

    def __init__(self, dataset: BatchDataset, train: TrainConfig, accelerator: Accelerator) -> None:
        self.dataset, self.train = dataset, train
        self.rank, self.world_size = accelerator.process_index, accelerator.num_processes

    def __getitem__(self, step: int) -> Any:
        train = self.train
        order = batch_indices(len(self.dataset), train.batch_size, step, train.seed)
        return self.dataset.batch(order[self.rank :: self.world_size])


def hash_seed(*numbers: int) -> int:
    """Mix integers into a seed."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
