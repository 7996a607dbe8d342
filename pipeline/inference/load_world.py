"""From a run folder to its world, ready for use."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from models.layers.inference import cast_weights, use_column_major
from models.registry import build_dynamics, build_tokenizer
from models.tokenizers.tokenizer import Tokenizer
from models.world import World
from pipeline import checkpoint as ckpt
from pipeline.device import pick_device, pick_precision

Device = torch.device | str | None
M = TypeVar("M", bound=nn.Module)


def load_tokenizer(run: Path, device: Device = None) -> tuple[Tokenizer, ckpt.Checkpoint]:
    """Return the tokenizer of a run, without gradients, and its checkpoint."""
    path = run / "tokenizer" / "best.pt"
    checkpoint = ckpt.load(path, "tokenizer")
    tokenizer = build_tokenizer(checkpoint["config"], ckpt.data_spec(checkpoint))
    return restore_for_inference(tokenizer, checkpoint, path, device or pick_device()), checkpoint


def load_world(run: Path, device: Device = None, int8: bool = False) -> World:
    """Return the world of a run: its tokenizer, and the dynamics model trained on it, or the one
    model that is both.

    int8: hold the dynamics' weights in 8 bits; ValueError on anything but a CPU.
    """
    device = torch.device(device) if device else pick_device()
    path = run / "dynamics" / "best.pt"
    checkpoint = ckpt.load(path, "dynamics")
    data = ckpt.data_spec(checkpoint)
    dynamics = build_dynamics(checkpoint["config"], data)
    if isinstance(dynamics, Tokenizer):  # trained jointly
        tokenizer: Tokenizer = dynamics
    else:
        tokenizer, parent = load_tokenizer(run, device)
        ckpt.check_parent(checkpoint, path, parent, run / "tokenizer" / "best.pt")
    dynamics = restore_for_inference(dynamics, checkpoint, path, device)
    if int8:
        from models.layers.int8 import quantize_linears

        quantize_linears(dynamics)
    use_column_major(dynamics)
    precision = pick_precision(device, "auto")
    cast_weights(dynamics, precision)
    return World(tokenizer, dynamics, precision, data.actions).requires_grad_(False)


def restore_for_inference(
    method: M, checkpoint: ckpt.Checkpoint, path: Path, device: torch.device | str
) -> M:
    """Load the weights of a checkpoint, without gradients, on `device`."""
    ckpt.restore(method, checkpoint, path)
    return method.to(device).eval().requires_grad_(False)
