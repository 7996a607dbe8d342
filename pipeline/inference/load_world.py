"""From a run folder to its world, ready for use."""

from __future__ import annotations

from pathlib import Path

import torch

from models.layers.inference import cast_weights, use_column_major
from models.layers.precision import Precision
from models.registry import build_dynamics
from models.tokenizers.tokenizer import Tokenizer
from models.world import World
from pipeline import checkpoint as ckpt
from pipeline.device import pick_device, pick_precision
from pipeline.inference.load_tokenizer import Device, for_inference, load_tokenizer
from pipeline.lineage import check_parent


def load_world(
    run: Path, device: Device = None, int8: bool = False, precision: Precision | None = None
) -> World:
    """Return the world of a run: its tokenizer, and the dynamics model trained on it, or the one
    model that is both.

    int8: hold the dynamics' weights in 8 bits; ValueError on anything but a CPU.
    precision: of its products; by default the device's.
    """
    device = torch.device(device) if device else pick_device()
    path = run / "dynamics" / "best.pt"
    checkpoint = ckpt.load(path, "dynamics")
    data = ckpt.data_spec(checkpoint, path)
    dynamics = ckpt.build(build_dynamics, checkpoint, path, data)
    if isinstance(dynamics, Tokenizer):  # trained jointly
        tokenizer: Tokenizer = dynamics
    else:
        tokenizer, parent = load_tokenizer(run, device)
        check_parent(checkpoint, path, parent, run / "tokenizer" / "best.pt")
    dynamics = for_inference(dynamics, device)
    if int8:
        from models.layers.int8 import quantize_linears

        quantize_linears(dynamics)
    use_column_major(dynamics)
    # where 16 bits were too few to train in, they are too few to act in
    in_fp32 = checkpoint.get("train", {}).get("precision") == "fp32"
    precision = precision or pick_precision(device, "fp32" if in_fp32 else "auto")
    cast_weights(dynamics, precision)
    return World(tokenizer, dynamics, precision, data.actions).requires_grad_(False)
