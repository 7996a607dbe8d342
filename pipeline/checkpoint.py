"""Checkpoints that describe themselves, are written whole or not at all, and know their parent.

Fields: format, stage, config, latents, actions, parent, model, fingerprint; and what resuming
needs: optimizer, average, schedule, step, best, waited, seconds.  Only tensors, numbers, strings,
lists and dicts, so that `weights_only=True` reads them.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from data.actions import ActionSpec
from data.shards import write_whole
from models.tokenizer import Latents

FORMAT = 2
WRITTEN_BY = {
    "tokenizer": "train_tokenizer.py",
    "dynamics": "train_dynamics.py",
    "controller": "train_controller.py",
}

Checkpoint = dict[str, Any]


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write through a `.partial` file that is flushed and renamed: an interrupted save, or a full
    disk, leaves the old file whole."""
    memory = io.BytesIO()
    torch.save(checkpoint, memory)
    write_whole(path, memory.getbuffer())


def load(path: Path, stage: str, device: str | torch.device = "cpu") -> Checkpoint:
    """Read a checkpoint of `stage`; ValueError says what is wrong with the file, in one line."""
    script = WRITTEN_BY[stage]
    if not path.exists():
        raise ValueError(f"{path} is not there; {script} --run {path.parent.parent} writes it")
    try:
        checkpoint = torch.load(path, map_location=device, weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError) as problem:
        reason = (str(problem).splitlines() or ["it is empty"])[0][:120]
        raise ValueError(
            f"{path} cannot be read as a checkpoint ({reason}); "
            f"move it away and run {script} again, or restore it from a copy"
        ) from None
    if not isinstance(checkpoint, dict) or "format" not in checkpoint:
        raise ValueError(f"{path} is not a checkpoint of this project; {script} writes one")
    if checkpoint["format"] != FORMAT:
        raise ValueError(
            f"{path} has format {checkpoint['format']}, but this version reads format {FORMAT}; "
            f"train again with {script}, or use the version that wrote it"
        )
    if checkpoint["stage"] != stage:
        raise ValueError(
            f"{path} holds a {checkpoint['stage']} checkpoint, but a {stage} one is needed here; "
            f"{script} writes one"
        )
    return checkpoint


def fingerprint(weights: dict[str, Tensor], config: dict[str, Any]) -> str:
    """Give 16 hex digits that change with any weight or setting."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def restore(model: nn.Module, checkpoint: Checkpoint, path: Path) -> None:
    """Put a checkpoint's weights into `model`; ValueError where the model has others by now."""
    own, given = model.state_dict(), checkpoint["model"]
    differing = [
        name
        for name in sorted(own.keys() | given.keys())
        if name not in own or name not in given or own[name].shape != given[name].shape
    ]
    if differing:
        raise ValueError(
            f"{path} was written by another version, whose {checkpoint['config']['kind']} has "
            f"other weights ({differing[0]} and {len(differing) - 1} more); train again with "
            f"{WRITTEN_BY[checkpoint['stage']]} --restart, or use the version that wrote it"
        )
    model.load_state_dict(given)


def check_parent(
    child: Checkpoint, child_path: Path, parent: Checkpoint, parent_path: Path
) -> None:
    """Raise ValueError when `child` was trained on another parent than this one."""
    known = child["parent"]["fingerprint"]
    if known != parent["fingerprint"]:
        raise ValueError(
            f"{child_path} was trained on a {parent['stage']} with fingerprint {known}, but "
            f"{parent_path} has {parent['fingerprint']}; run {WRITTEN_BY[child['stage']]} "
            f"--restart, or put the old {parent['stage']} back"
        )


def action_spec(checkpoint: Checkpoint) -> ActionSpec:
    return ActionSpec.from_dict(checkpoint["actions"])


def latents_of(checkpoint: Checkpoint) -> Latents:
    return Latents.from_dict(checkpoint["latents"])
