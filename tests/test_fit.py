"""Fitting a small network of an evaluation."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from evaluation.readers.fit import fit


@pytest.mark.parametrize("schedule", ["one_cycle", "cosine"])
@pytest.mark.parametrize("steps", [1, 2, 3, 9, 10, 11, 20, 30])
def test_any_number_of_steps_fits(steps: int, schedule: str):
    torch.manual_seed(0)
    network = nn.Linear(2, 1)
    before, x = network.weight.clone(), torch.randn(16, 2)
    calls = []

    def loss() -> torch.Tensor:
        calls.append(1)
        return (network(x) - x.sum(1, keepdim=True)).square().mean()

    first = float(loss())
    fit(network, loss, steps, learning_rate=0.02, weight_decay=0.0, schedule=schedule)  # type: ignore[arg-type]
    assert len(calls) == steps + 1 and not network.training
    assert network.weight.isfinite().all() and not torch.equal(network.weight, before)
    assert float(loss()) < first
