"""Low-rank adapters of frozen weights (LoRA, arXiv:2106.09685), by PEFT.

PEFT puts them in place: modules keep their paths and classes, and a layer that is adapted has its
own weights as `base_layer`.
"""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn

ADAPTER = ".lora_"
"""What the names of an adapter's weights have in them, and no others."""


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


def _library() -> Any:
    try:
        import peft
    except ImportError as problem:
        raise ValueError(
            f"--model.tuning lora needs {problem.name}; install it with: "
            f"pip install -r requirements-lora.txt"
        ) from None
    return peft
