"""Measure the peak memory of a step on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch

from bench.races.pairs import Row


def memory_rows(
    area: str,
    what: str,
    steps: Mapping[str, Callable[[], object]],
    targets: Mapping[str, tuple[float, float]],
) -> Iterator[Row]:
    """Compare the memory that a step allocates at its peak, ours against each peer's."""
    peaks = {name: _peak(run) for name, run in steps.items()}
    for name, theirs in peaks.items():
        if name == "ours":
            continue
        target, stretch = targets.get(name, (None, None))
        ours = max(peaks["ours"], 1 / 1024)
        yield Row(
            area, f"{what}, peak memory", name, "MiB",
            ours, theirs, theirs / ours, rounds=1, target=target, stretch=stretch,
        )  # fmt: skip


def _peak(run: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20
