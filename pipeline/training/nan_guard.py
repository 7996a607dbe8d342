"""Losses and gradients have to be finite; this looks at them without keeping a GPU waiting."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from models.method import Losses


class NanGuard:
    """Refuses losses and gradients that are not finite.

    `immediate` looks at each as it comes.  To read one from a GPU is to wait for it, so there they
    are kept until a `check`: before every log line, validation and checkpoint, so that nothing is
    handed on that came of one that is not finite.
    """

    def __init__(self, stage: str, flag_prefix: str, immediate: bool) -> None:
        self.stage, self.flag_prefix, self.immediate = stage, flag_prefix, immediate
        self.last_checkpoint: Path | None = None  # to resume from, once there is one
        self._pending: list[tuple[str, Tensor, int, Losses]] = []

    def add(self, name: str, value: Tensor, step: int, losses: Losses) -> None:
        """losses: the terms that the error names."""
        self._pending.append(
            (name, value.detach(), step, {k: v.detach() for k, v in losses.items()})
        )
        if self.immediate:
            self.check()

    def check(self) -> None:
        """Raise ValueError for the first that is not finite, and again at every later call."""
        for name, value, step, losses in self._pending:
            if not torch.isfinite(value):
                loss_values = ", ".join(f"{k} {v.item():.3g}" for k, v in losses.items())
                advice = (
                    f"{self.last_checkpoint} is whole, resume from there"
                    if self.last_checkpoint
                    else "start over"
                )
                raise ValueError(
                    f"{self.stage}: the {name} is not finite at step {step} ({loss_values}); "
                    f"{advice} with a lower --{self.flag_prefix}.learning-rate"
                )
        self._pending.clear()
