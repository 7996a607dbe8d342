"""The dtype in which products are computed."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Literal

import torch

Precision = Literal["bf16", "fp16", "fp32"]


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """Compute products in `precision` inside a `with` block."""
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype=dtype, enabled=precision != "fp32")
