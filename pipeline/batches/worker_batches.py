"""Load the batches of the coming steps in other processes."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from data.batch import Batch
from data.processes import end_with_parent

PREFETCH = 2  # batches that each worker holds ready
SHARED_MEMORY = Path("/dev/shm")
PLENTY = 2**30  # bytes of shared memory that no batch is measured against
MIB = 2**20


def load_in_workers(
    dataset: Dataset[Any], steps: range, num_workers: int, flag: str
) -> Iterator[Batch]:
    """Give the batch of each step, loaded ahead by `num_workers` processes.

    flag: what chooses their number.  ValueError where shared memory is too small for their batches,
    or one of them was killed.
    """
    if len(steps):
        _check_shared_memory(dataset, steps[0], num_workers, flag)
    loader = DataLoader(
        _InWorker(dataset),
        batch_size=None,
        sampler=steps,  # type: ignore[arg-type]
        num_workers=num_workers,
        prefetch_factor=PREFETCH,
        multiprocessing_context="spawn",
        worker_init_fn=_begin_worker,
    )
    with _dead_workers_raise_here(num_workers, flag):
        for item in _start(loader):
            if isinstance(item, _Failure):
                raise ValueError(item.reason)
            yield item


@dataclass
class _Failure:
    """In place of a batch: why there is none.  A DataLoader would add its worker's stack trace."""

    reason: str


class _InWorker(Dataset[Any]):
    """The batches of a dataset, or why there is none."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __getitem__(self, step: int) -> Batch | _Failure:
        try:
            return self.dataset[step]
        except (ValueError, OSError) as error:
            return _Failure(str(error))
        except MemoryError:
            return _Failure("memory ran out in a process that loads batches; use fewer of them")


def _begin_worker(number: int) -> None:
    end_with_parent()
    # else the batch is dropped, and waited for without end
    Queue._on_queue_feeder_error = staticmethod(_end)  # type: ignore[attr-defined]


def _end(error: Exception, item: Any) -> None:
    """End a worker that cannot hand over a batch, as where shared memory is full."""
    reason = " ".join(str(error).split())[:200]
    print(f"a batch cannot be handed over: {reason}", file=sys.stderr, flush=True)
    os._exit(1)


def _start(loader: Iterable[Any]) -> Iterator[Any]:
    """Start the workers, without PyTorch's handler of SIGCHLD: it raises the end of a worker in the
    middle of whatever this process does, even where both were asked to stop."""
    if threading.current_thread() is not threading.main_thread():
        return iter(loader)
    before = signal.getsignal(signal.SIGCHLD)
    batches = iter(loader)
    signal.signal(signal.SIGCHLD, before)
    return batches


@contextmanager
def _dead_workers_raise_here(num_workers: int, flag: str) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, EOFError, ConnectionError) as error:
        # the last two: its earlier batches can no longer be fetched from it
        if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
            raise
        raise ValueError(
            f"one of the {num_workers} processes that load batches was killed, as the system does "
            f"where memory runs out; lower {flag}, or give 0, and run again to resume"
        ) from None


def _check_shared_memory(dataset: Dataset[Any], step: int, num_workers: int, flag: str) -> None:
    """Workers hand over their batches in shared memory."""
    if not SHARED_MEMORY.is_dir():  # macOS has no such folder, and no such limit
        return
    free = shutil.disk_usage(SHARED_MEMORY).free
    if free >= PLENTY:
        return
    sizes: list[int] = []

    def measure(values: torch.Tensor) -> torch.Tensor:
        sizes.append(values.nbytes)
        return values

    dataset[step].map(measure)
    needed = (num_workers * PREFETCH + 1) * sum(sizes)
    if needed > free:
        raise ValueError(
            f"{flag} {num_workers} needs {needed / MIB:.1f} MiB of shared memory for its batches, "
            f"and {SHARED_MEMORY} has {free / MIB:.1f} MiB free; give {flag} 0, or more of it "
            f"(docker run --shm-size 1g)"
        )
