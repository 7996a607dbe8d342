"""What has to be finite, looked at without keeping a GPU waiting."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

Losses = dict[str, Tensor]


class Finite:
    """Losses and gradients of a run.  `at_once` looks at each as it comes; to read one from a GPU
    is to wait for it, so there they are kept until a `check`: before every report, validation and
    checkpoint, so that nothing is handed on that has come of one that is not finite."""

    def __init__(self, stage: str, flags: str, at_once: bool) -> None:
        self.stage, self.flags, self.at_once = stage, flags, at_once
        self.last: Path | None = None  # the checkpoint to go on from, once there is one
        self._unread: list[tuple[str, Tensor, int, Losses]] = []

    def expect(self, name: str, value: Tensor, step: int, terms: Losses) -> None:
        """terms: what the error names."""
        self._unread.append((name, value.detach(), step, {k: v.detach() for k, v in terms.items()}))
        if self.at_once:
            self.check()

    def check(self) -> None:
        """Raise ValueError for the first that is not finite, and again at every later call."""
        for name, value, step, terms in self._unread:
            if not torch.isfinite(value):
                said = ", ".join(f"{k} {v.item():.3g}" for k, v in terms.items())
                again = f"{self.last} is whole, go on from there" if self.last else "begin again"
                raise ValueError(
                    f"{self.stage}: the {name} is not finite at step {step} ({said}); "
                    f"{again} with a lower --{self.flags}.learning-rate"
                )
        self._unread.clear()
