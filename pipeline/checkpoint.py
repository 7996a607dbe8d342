"""Checkpoints that describe themselves, are written whole or not at all, and know their parent.

Fields: format, stage, config, image_size, latents, actions, data_actions, parent, model,
fingerprint; and what resuming needs: optimizer, ema, scaler, step, best, bad_validations, lr_scale,
seconds.  Only tensors, numbers, strings, lists and dicts, so that `weights_only=True` reads them.
"""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from data.actions import ActionSpec
from data.files import atomic_write
from models import registry
from models.registry import DataSpec, MethodConfig
from models.tokenizers.tokenizer import LatentSpec

FORMAT = 3
SCRIPTS = {
    "tokenizer": "train_tokenizer.py",
    "dynamics": "train_dynamics.py",
    "controller": "train_controller.py",
}

REQUIRED_KEYS = (
    "stage", "config", "image_size", "latents", "actions", "data_actions", "parent", "model",
    "fingerprint",
)  # fmt: skip

Checkpoint = dict[str, Any]


def train_command(stage: str, path: Path) -> str:
    """What writes the checkpoint of `stage` at `path`, a file in RUN/STAGE or a folder of it."""
    run = next((p.parent for p in path.parents if p.name == stage), path.parent.parent)
    return f"{SCRIPTS[stage]} --run {run}"


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write through a `.partial` file that is flushed and renamed: an interrupted save, or a full
    disk, leaves the old file whole."""
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    atomic_write(path, buffer.getbuffer())


def describe(
    config: MethodConfig,
    data: DataSpec,
    latents: LatentSpec,
    actions: ActionSpec,
    parent: tuple[Path, str],
) -> dict[str, Any]:
    """Give what a checkpoint says of its model.

    data: what the model was built for.  latents: what it makes or reads.  actions: what a step
    takes, the data's or its own.  parent: path and fingerprint of what is underneath.
    """
    return {
        "config": registry.describe(config),
        "image_size": list(data.image_size),
        "latents": latents.as_dict(),
        "actions": actions.as_dict(),
        "data_actions": data.actions.as_dict(),
        "parent": {"path": str(parent[0]), "fingerprint": parent[1]},
    }


def data_spec(checkpoint: Checkpoint) -> DataSpec:
    """The data that a checkpoint's model was built for."""
    height, width = checkpoint["image_size"]
    return DataSpec(
        (height, width),
        ActionSpec.from_dict(checkpoint["data_actions"]),
        None if checkpoint["stage"] == "tokenizer" else LatentSpec.from_dict(checkpoint["latents"]),
    )


def load(path: Path, stage: str) -> Checkpoint:
    """Read a checkpoint of `stage` to the CPU; ValueError says what is wrong with the file, in one
    line."""
    script = train_command(stage, path)
    # a stage that is finished writes nothing without it
    again = f"{script} --restart" if path.with_name("last.pt").exists() else script
    if not path.exists():
        raise ValueError(f"{path} is not there; {again} writes it")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as problem:  # reading what is damaged can raise anything
        reason = (str(problem).splitlines() or ["it is empty"])[0][:120]
        raise ValueError(
            f"{path} cannot be read as a checkpoint ({type(problem).__name__}: {reason}); "
            f"restore it from a copy, or start over with {script} --restart"
        ) from None
    if not isinstance(checkpoint, dict) or "format" not in checkpoint:
        raise ValueError(f"{path} is not a checkpoint of this project; {script} writes one")
    if checkpoint["format"] != FORMAT:
        raise ValueError(
            f"{path} has format {checkpoint['format']}, but this version reads format {FORMAT}; "
            f"train again with {again}, or use the version that wrote it"
        )
    missing = ", ".join(key for key in REQUIRED_KEYS if key not in checkpoint)
    if missing:
        raise ValueError(
            f"{path} is damaged: it holds no {missing}; {script} --restart writes it again"
        )
    if checkpoint["stage"] != stage:
        raise ValueError(
            f"{path} holds a {checkpoint['stage']} checkpoint, but a {stage} one is needed here; "
            f"{again} writes one"
        )
    return checkpoint


def fingerprint(weights: dict[str, Tensor], config: dict[str, Any]) -> str:
    """Give 16 hex digits that change with any weight or setting."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def restore(model: nn.Module, checkpoint: Checkpoint, path: Path) -> None:
    """Put a checkpoint's weights into `model`; ValueError where the model has others by now, or
    the file is damaged."""
    expected, stored = model.state_dict(), checkpoint["model"]
    differing = [
        name
        for name in sorted(expected.keys() | stored.keys())
        if name not in expected or name not in stored or expected[name].shape != stored[name].shape
    ]
    if differing:
        raise ValueError(
            f"{path} was written by another version, whose {checkpoint['config']['kind']} has "
            f"other weights ({differing[0]} and {len(differing) - 1} more); train again with "
            f"{train_command(checkpoint['stage'], path)} --restart, or use the version that "
            f"wrote it"
        )
    check_weights(checkpoint, path)
    model.load_state_dict(stored)


def check_weights(checkpoint: Checkpoint, path: Path) -> None:
    """Raise ValueError where weights or config are not those that were written."""
    actual = fingerprint(checkpoint["model"], checkpoint["config"])
    if actual != checkpoint["fingerprint"]:
        raise ValueError(
            f"{path} is damaged: its weights are not those that were written (fingerprint {actual} "
            f"instead of {checkpoint['fingerprint']}); restore it from a copy, or train again with "
            f"{train_command(checkpoint['stage'], path)} --restart"
        )


def check_parent(
    child: Checkpoint, child_path: Path, parent: Checkpoint, parent_path: Path
) -> None:
    """Raise ValueError when `child` was trained on another parent than this one."""
    expected = child["parent"]["fingerprint"]
    if expected != parent["fingerprint"]:
        raise ValueError(
            f"{child_path} was trained on a {parent['stage']} with fingerprint {expected}, but "
            f"{parent_path} has {parent['fingerprint']}; run "
            f"{train_command(child['stage'], child_path)} --restart, or put the old "
            f"{parent['stage']} back"
        )
