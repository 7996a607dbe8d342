"""Fit a small network of an evaluation: AdamW, a learning rate schedule, gradient clipping."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR
from tqdm import trange


def fit(
    network: nn.Module,
    loss: Callable[[], Tensor],
    steps: int,
    *,
    learning_rate: float,
    weight_decay: float,
    schedule: Literal["one_cycle", "cosine"] = "one_cycle",
    max_grad_norm: float | None = None,
    progress: str | None = None,
) -> None:
    """Minimize `loss`, which draws a batch at each call, and leave the network in eval mode.

    learning_rate: the highest of the schedule; one_cycle warms up for a tenth of the steps, and is
    a cosine where that is no more than the first one.
    progress: the name of a progress bar; None shows none.
    """
    network.train()
    optimizer = AdamW(network.parameters(), learning_rate, weight_decay=weight_decay)
    if schedule == "one_cycle" and steps > 10:  # of 10 it divides by the 0 steps that warm up
        scheduler = OneCycleLR(optimizer, learning_rate, steps, pct_start=0.1)
    else:
        scheduler = CosineAnnealingLR(optimizer, steps)
    for _ in trange(steps, desc=progress, disable=progress is None, leave=False):
        value = loss()
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        if max_grad_norm is not None:
            nn.utils.clip_grad_norm_(network.parameters(), max_grad_norm)
        optimizer.step()
        scheduler.step()
    network.eval()
