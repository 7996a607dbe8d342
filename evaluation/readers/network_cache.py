"""Networks that an evaluation keeps next to its report: trained once, again where damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pipeline import tensor_file


def save_cached(path: Path, cache_key: dict[str, Any], network: nn.Module) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tensor_file.save(path, {"cache_key": cache_key, "network": network.state_dict()})


def load_cached(path: Path, cache_key: dict[str, Any], network: nn.Module) -> bool:
    """Put the weights at `path` into `network`, in eval mode.

    False, with `network` as it was, where there are none, where they are not those that were
    written, or where they are of another cache key or of another network.
    """
    try:
        saved = tensor_file.read(path)
        tensor_file.check_digest(saved)
        weights = saved["network"]
        if saved["cache_key"] != cache_key or not _fits(weights, network.state_dict()):
            return False
    except (OSError, ValueError, KeyError, AttributeError, MemoryError):
        return False
    network.load_state_dict(weights)
    network.eval()
    return True


def _fits(weights: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return weights.keys() == expected.keys() and all(
        weights[name].shape == value.shape for name, value in expected.items()
    )
