"""How much of a training's time its device had nothing to do."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

T = TypeVar("T")


class IdleTimer:
    """Time between steps, as a share of all: a CPU waits for batches, a GPU also for the host.

    On a GPU steps are timed there (events), so that work that is only queued does not count.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._start = time.perf_counter()
        self._wait_seconds = 0.0
        self._spans: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def time_batches(self, batches: Iterable[T]) -> Iterator[T]:
        """Give the batches, and remember how long each was waited for."""
        source = iter(batches)
        while True:
            start = time.perf_counter()
            try:
                batch = next(source)
            except StopIteration:
                return
            self._wait_seconds += time.perf_counter() - start
            yield batch

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Mark what the device does for a step."""
        if self.device.type != "cuda":
            yield
            return
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        yield
        end.record()
        self._spans.append((start, end))

    def fraction(self) -> float:
        """Give the share of the time since the last call; on a GPU this waits for it."""
        elapsed = max(time.perf_counter() - self._start, 1e-9)
        idle = self._wait_seconds
        if self._spans:
            self._spans[-1][1].synchronize()
            idle = elapsed - sum(a.elapsed_time(b) for a, b in self._spans) / 1000
        self._start, self._wait_seconds, self._spans = time.perf_counter(), 0.0, []
        return min(1.0, max(0.0, idle / elapsed))
