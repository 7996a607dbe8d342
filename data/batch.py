"""What a loss reads: a batch of clips, field by field.

Letters: B clips, T frames, N latents a frame, P patches, D latent width, A action numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor


@dataclass
class Batch:
    """Fields are None where the data has none, or the method did not ask for it (`needs`).

    `actions[t]` leads from `frames[t]` to `frames[t + 1]`; the first axis of every field is B.
    """

    frames: Tensor | None = None  # (B, T, 3, H, W) uint8, RGB
    latents: Tensor | None = None  # (B, T, N) int64, or (B, T, P, D) float32
    actions: Tensor | None = None  # (B, T, A) in [-1, 1], or (B, T) int64 codes
    rewards: Tensor | None = None  # (B, T) float32, earned on reaching frames[t]
    continues: Tensor | None = None  # (B, T) float32, 0 at a true end
    extra: dict[str, Tensor] = field(default_factory=dict)
    """What only one method knows, by its name."""

    def __len__(self) -> int:
        tensors = [getattr(self, f.name) for f in fields(self) if f.name != "extra"]
        return len(next(t for t in [*tensors, *self.extra.values()] if t is not None))

    def require(self, *names: str) -> tuple[Tensor, ...]:
        """Give fields that have to be there; ValueError names the first that is not."""
        found = []
        for name in names:
            value = self.extra.get(name) if name in self.extra else getattr(self, name, None)
            if value is None:
                raise ValueError(f"the loss reads {name}, which this data does not have")
            found.append(value)
        return tuple(found)

    def map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """Apply `change` to each field that is there."""
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        extra = {k: change(v) for k, v in values.pop("extra").items()}
        changed = {k: None if v is None else change(v) for k, v in values.items()}
        return Batch(**changed, extra=extra)

    def rows(self, low: int, high: int) -> Batch:
        """Give the clips from `low` up to `high`, without a copy."""
        return self.map(lambda values: values[low:high])

    def to(self, device: torch.device | str) -> Batch:  # move each field to a device
        wait = torch.device(device).type != "cuda"  # nothing in a step may wait for the GPU
        return self.map(lambda values: values.to(device, non_blocking=not wait))
