"""Losses, gradients, weights and data have to be finite; this looks at them without keeping a GPU
waiting."""

from __future__ import annotations

import shlex
from dataclasses import fields
from pathlib import Path

import torch
from torch import Tensor

from data.batch import Batch
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
                raise ValueError(
                    f"{self.stage}: the {name} is not finite at step {step} ({loss_values}); "
                    f"{self._advice(step)}"
                )
        self._pending.clear()

    def check_weights(self, weights: dict[str, Tensor], step: int) -> None:
        """Raise ValueError where a weight is not finite: it is not written."""
        for name, value in weights.items():
            if value.is_floating_point() and not torch.isfinite(value).all():
                raise ValueError(
                    f"{self.stage}: the weight {name} is not finite after {step} steps, and is not "
                    f"kept; {self._advice(step)}"
                )

    def check_batch(self, batch: Batch, run: Path) -> None:
        """Raise ValueError where a field of a batch is not finite, before anything is learned of
        it; run: the folder of its shards."""
        values = {f.name: getattr(batch, f.name) for f in fields(batch) if f.name != "extra"}
        for name, value in (values | batch.extra).items():
            if value is None or not value.is_floating_point() or torch.isfinite(value).all():
                continue
            raise ValueError(
                f"{self.stage}: the {name} of the first batch are not finite; python preprocess.py "
                f"check {shlex.quote(str(run))} looks at the recordings"
            )

    def _advice(self, step: int) -> str:
        lower = f"with a lower --{self.flag_prefix}.learning-rate"
        if self.last_checkpoint:
            return f"{self.last_checkpoint} is whole, resume from there {lower}"
        if step:
            return f"start over {lower}"
        return (
            "nothing was learned yet, so it is not the learning rate; look at the settings of the "
            "method, and at the recordings with python preprocess.py check RUN"
        )
