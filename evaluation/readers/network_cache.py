"""Networks that an evaluation keeps next to its report: trained once, again where damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def load_cached(
    path: Path, cache_key: dict[str, Any], device: torch.device | str
) -> dict[str, Tensor] | None:
    """Load the weights at `path`; None if the file is damaged, or its cache key is another."""
    try:
        saved = torch.load(path, weights_only=True, map_location=device)
        return saved["network"] if saved["cache_key"] == cache_key else None
    except Exception:  # reading a damaged file can raise anything
        return None
