"""From a run folder to its tokenizer, ready for use."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from models.registry import build_tokenizer
from models.tokenizers.tokenizer import Tokenizer
from pipeline import checkpoint as ckpt
from pipeline.device import pick_device

Device = torch.device | str | None
M = TypeVar("M", bound=nn.Module)


def load_tokenizer(run: Path, device: Device = None) -> tuple[Tokenizer, ckpt.Checkpoint]:
    """Return the tokenizer of a run, without gradients, and its checkpoint."""
    path = run / "tokenizer" / "best.pt"
    checkpoint = ckpt.load(path, "tokenizer")
    tokenizer = ckpt.build(build_tokenizer, checkpoint, path, ckpt.data_spec(checkpoint, path))
    return for_inference(tokenizer, device or pick_device()), checkpoint


def for_inference(method: M, device: torch.device | str) -> M:
    """Move a model to `device`, without gradients."""
    return method.to(device).eval().requires_grad_(False)
