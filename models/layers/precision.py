"""The dtype in which products are computed, and sums that need more digits."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Literal

import torch
from torch import Tensor

Precision = Literal["bf16", "fp16", "fp32"]
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """Compute products in `precision` inside a `with` block."""
    return torch.autocast(device.type, dtype=DTYPES[precision], enabled=precision != "fp32")


def to_float64(x: Tensor) -> Tensor:
    """Return x in float64: on its device if that is a CPU or has CUDA, else on the CPU, because
    Apple's MPS knows no float64."""
    return (x if x.device.type in ("cpu", "cuda") else x.cpu()).double()
