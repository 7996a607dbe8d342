"""Low-rank adapters of frozen weights (LoRA, arXiv:2106.09685), by PEFT.

PEFT puts them in place: modules keep their paths and classes, and a layer that is adapted has its
own weights as `base_layer`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

ADAPTER = ".lora_"
"""What the names of an adapter's weights have in them, and no others."""
BASE = ".base_layer."
"""What the names of an adapted layer's own weights have in them."""


def add_adapters(module: nn.Module, rank: int, alpha: float) -> None:
    """Freeze a module, and add adapters to all its linear layers; at first they change nothing.

    ValueError says how to install the library, and which rank is too large.
    """
    peft = _library()
    module.requires_grad_(False)
    config = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules="all-linear")
    with warnings.catch_warnings():  # of GPT-2's layers, which are stored transposed
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False")
        peft.inject_adapter_in_model(config, module)
    most = max(min(base.weight.shape) for base in adapted_layers(module).values())
    if rank > most:
        raise ValueError(
            f"--model.lora-rank {rank} is more than the rank of any layer that it adapts, {most}; "
            f"give {most} or less, or --model.tuning full"
        )


def adapted_layers(module: nn.Module) -> dict[str, Any]:
    """The layers that have adapters, without them, by their path."""
    found = {path: m for path, m in module.named_modules() if hasattr(m, "lora_A")}
    return {path: m.base_layer for path, m in found.items()}


def merged(state: dict[str, Tensor], scale: float, module: nn.Module) -> dict[str, Tensor]:
    """Add a state's adapters to the weights that they adapt, and drop them; names are then those
    without adapters.

    scale: alpha over the rank.  module: has the layers of these names, without adapters.
    """
    found = without_base_names({k: v for k, v in state.items() if ADAPTER not in k})
    for name, down in state.items():
        path, is_first, rest = name.partition(f"{ADAPTER}A.")
        if is_first:
            change = scale * state[f"{path}{ADAPTER}B.{rest}"] @ down  # (out, in)
            if type(module.get_submodule(path)).__name__ == "Conv1D":  # GPT-2's, stored transposed
                change = change.T
            found[f"{path}.weight"] = found[f"{path}.weight"] + change
    return found


def without_base_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state under the names that it has where no layer is adapted."""
    return {name.replace(BASE, "."): value for name, value in state.items()}


def with_base_names(state: dict[str, Tensor], paths: Iterable[str]) -> dict[str, Tensor]:
    """A state under the names that it has where the layers of these paths are adapted."""
    adapted = set(paths)
    found = {}
    for name, value in without_base_names(state).items():
        path, _, last = name.rpartition(".")
        found[f"{path}{BASE}{last}" if path in adapted else name] = value
    return found


def _library() -> Any:
    try:
        import peft
    except ImportError as problem:
        raise ValueError(
            f"--model.tuning lora needs {problem.name}; install it with: "
            f"pip install -r requirements-lora.txt"
        ) from None
    return peft
