"""Networks that an evaluation keeps beside its report: made once, and anew where not whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def load_cached(
    path: Path, cache_key: dict[str, Any], device: torch.device | str
) -> dict[str, Tensor] | None:
    """Give the weights that were saved there, if they are whole and made from the same."""
    try:
        saved = torch.load(path, weights_only=True, map_location=device)
        return saved["network"] if saved["made_from"] == cache_key else None
    except Exception:  # reading what is damaged can raise anything
        return None
