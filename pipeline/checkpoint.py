"""Checkpoints that describe themselves, are written whole or not at all, and know their parent.

Fields: format, stage, config, image_size, latents, actions, data_actions, parent, recordings,
model, fingerprint; growths and lineage where data grew (pipeline/training/resume.py); what resuming
needs: optimizer, ema, scaler, step, best, bad_validations, lr_scale, seconds, digest.
Only tensors, numbers, strings, lists and dicts, so that `weights_only=True` reads them.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from data.actions import ActionSpec
from data.io.messages import command, first_few, one_line
from models import registry
from models.method import ExternalWeightsError
from models.registry import DataSpec, MethodConfig
from models.tokenizers.tokenizer import LatentSpec
from pipeline import tensor_file

FORMAT = 4
WITHOUT_DIGEST = 3  # an older format, which is still read: it has no digest and no recordings
SCRIPTS = {
    "tokenizer": "train_tokenizer.py",
    "dynamics": "train_dynamics.py",
    "controller": "train_controller.py",
}

REQUIRED_KEYS = (
    "stage", "config", "image_size", "latents", "actions", "data_actions", "parent", "model",
    "fingerprint",
)  # fmt: skip
TYPES = {
    **dict.fromkeys(("stage", "fingerprint"), str),
    **dict.fromkeys(("config", "latents", "actions", "data_actions", "parent", "model"), dict),
    **dict.fromkeys(("train", "ema", "optimizer", "scaler", "bc", "settings"), dict),
    **dict.fromkeys(("step", "bad_validations", "growths"), int),
    "lineage": list,
    **dict.fromkeys(("seconds", "lr_scale"), int | float),
    "recordings": dict | None,
    "best": int | float | None,
    "image_size": list,
}

Checkpoint = dict[str, Any]
M = TypeVar("M", bound=nn.Module)
save = tensor_file.save


def run_of(stage: str, path: Path) -> Path:
    """The run folder of a checkpoint of `stage`, a file in RUN/STAGE or a folder of it."""
    return next((p.parent for p in path.parents if p.name == stage), path.parent.parent)


def train_command(stage: str, path: Path) -> str:
    """What writes the checkpoint of `stage` at `path`."""
    run, folder = run_of(stage, path), path.parent
    # a method of its own in RUN/controller/METHOD: all methods would be trained without its name
    methods = ("--methods", folder.name) if folder.parent == run / "controller" else ()
    return command(SCRIPTS[stage], "--run", run, *methods)


def describe(
    config: MethodConfig,
    data: DataSpec,
    latents: LatentSpec,
    actions: ActionSpec,
    parent: tuple[Path, str],
    recordings: dict[str, Any] | None = None,
    settings: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Give what a checkpoint says of its model.

    data: what the model was built for.  latents: what it makes or reads.  actions: what a step
    takes, the data's or its own.  parent: path and fingerprint of what is underneath.  recordings:
    what it is trained on (pipeline/trained_on.py), None where that is not known.  settings: the
    stage's own, by their names, without which a training is another.
    """
    return {
        "config": registry.describe(config),
        "image_size": list(data.image_size),
        "latents": latents.as_dict(),
        "actions": actions.as_dict(),
        "data_actions": data.actions.as_dict(),
        "parent": {"path": str(parent[0]), "fingerprint": parent[1]},
        "recordings": recordings,
        "settings": settings or {},
    }


def data_spec(checkpoint: Checkpoint, path: Path) -> DataSpec:
    """The data that a checkpoint's model was built for; ValueError where that is not described."""
    height, width = checkpoint["image_size"]
    actions = action_spec(checkpoint, "data_actions", path)
    try:
        latents = LatentSpec.from_dict(checkpoint["latents"])
    except (ValueError, TypeError, KeyError) as problem:
        raise _unusable(checkpoint, path, f"its latents: {one_line(problem)}") from None
    return DataSpec(
        (height, width), actions, None if checkpoint["stage"] == "tokenizer" else latents
    )


def action_spec(checkpoint: Checkpoint, key: str, path: Path) -> ActionSpec:
    """The action space in the field `key`; ValueError where it describes none."""
    try:
        return ActionSpec.from_dict(checkpoint[key])
    except (ValueError, TypeError, KeyError, AttributeError) as problem:
        raise _unusable(checkpoint, path, f"its {key}: {one_line(problem)}") from None


def load(path: Path, stage: str) -> Checkpoint:
    """Read a checkpoint of `stage` to the CPU; ValueError says what is wrong with the file, in one
    line."""
    script = train_command(stage, path)
    # a stage that is finished writes nothing without it
    again = f"{script} --restart" if path.with_name("last.pt").exists() else script
    if not path.exists():
        raise ValueError(f"{path} is not there; {again} writes it")
    way_out = f"restore it from a copy, or start over with {script} --restart"
    try:
        checkpoint = tensor_file.read(path)
    except tensor_file.Damaged as problem:
        raise ValueError(f"{path} cannot be read as a checkpoint ({problem}); {way_out}") from None
    except OSError as problem:
        raise ValueError(f"{path} cannot be read ({problem.strerror or problem})") from None
    except MemoryError:
        raise ValueError(
            f"{path} does not fit into the memory that is left; stop what else is running"
        ) from None
    if not isinstance(checkpoint, dict) or "format" not in checkpoint:
        raise ValueError(f"{path} is not a checkpoint of this project; {script} writes one")
    if checkpoint["format"] not in (FORMAT, WITHOUT_DIGEST):
        raise ValueError(
            f"{path} has format {checkpoint['format']!s:.20}, but this version reads format "
            f"{FORMAT}; train again with {again}, or use the version that wrote it"
        )
    missing = first_few(key for key in REQUIRED_KEYS if key not in checkpoint)
    if missing:
        raise ValueError(
            f"{path} is damaged: it holds no {missing}; {script} --restart writes it again"
        )
    if wrong := _wrong_field(checkpoint):
        raise ValueError(f"{path} is damaged: {wrong}; {way_out}")
    if checkpoint["stage"] != stage:
        raise ValueError(
            f"{path} holds a {checkpoint['stage']:.20} checkpoint, but a {stage} one is needed "
            f"here; {again} writes one"
        )
    check_weights(checkpoint, path)
    try:
        if checkpoint["format"] != WITHOUT_DIGEST:
            tensor_file.check_digest(checkpoint)
    except tensor_file.Damaged as problem:
        raise ValueError(f"{path} is damaged: {problem}; {way_out}") from None
    return checkpoint


def fingerprint(weights: dict[str, Tensor], config: dict[str, Any]) -> str:
    """Give 16 hex digits that change with any weight or setting."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name in sorted(weights):
        digest.update(f"{name} ".encode())
        tensor_file.update_with_tensor(digest, weights[name])
    return digest.hexdigest()[:16]


def check_weights(checkpoint: Checkpoint, path: Path) -> None:
    """Raise ValueError where weights or config are not those that were written."""
    actual = fingerprint(checkpoint["model"], checkpoint["config"])
    if actual != checkpoint["fingerprint"]:
        raise ValueError(
            f"{path} is damaged: its weights are not those that were written (fingerprint {actual} "
            f"instead of {checkpoint['fingerprint']:.20}); restore it from a copy, or train again "
            f"with {train_command(checkpoint['stage'], path)} --restart"
        )


def build(
    build_model: Callable[[dict[str, Any], DataSpec], M],
    checkpoint: Checkpoint,
    path: Path,
    data: DataSpec,
) -> M:
    """Build the model that a checkpoint describes, with its weights.

    ValueError where it describes none, or one of other weights than it holds: that is found before
    the model takes any memory.
    """
    for device in ("meta", "cpu"):
        try:
            with torch.device(device):
                model = build_model(checkpoint["config"], data)
        except ExternalWeightsError as problem:
            raise ValueError(f"{path} {problem}") from None
        except Exception as problem:  # a config may say anything
            if device == "meta" and isinstance(problem, RuntimeError | NotImplementedError):
                continue  # it computes with values while it is built
            reason = f"its config: {one_line(problem)}"
            raise _unusable(checkpoint, path, reason) from problem
        check_same_weights(model, checkpoint, path)
    restore(model, checkpoint, path)
    return model


def config_to_resume(config: Any, folder: Path, restart: bool) -> Any:
    """Give the config to build from, as last.pt holds it where the folder of weights is gone."""
    name, last = getattr(config, "pretrained", "random"), folder / "last.pt"
    if restart or name.startswith("random") or Path(name).exists() or not last.is_file():
        return config
    found = load(last, folder.name)["config"]
    same = (found["kind"], found["pretrained"]) == (registry.describe(config)["kind"], name)
    named = found.get("sha256") or config.sha256 or config.revision
    return replace(config, architecture=found["architecture"]) if same and not named else config


def restore(model: nn.Module, checkpoint: Checkpoint, path: Path) -> None:
    """Put a checkpoint's weights into `model`; ValueError where the model has others by now."""
    check_same_weights(model, checkpoint, path)
    model.load_state_dict(checkpoint["model"])


def check_same_weights(model: nn.Module, checkpoint: Checkpoint, path: Path) -> None:
    """Raise ValueError where `model` has other weights, by name and shape, than a checkpoint."""
    expected, stored = model.state_dict(), checkpoint["model"]
    differing = [
        name
        for name in sorted(expected.keys() | stored.keys())
        if name not in expected or name not in stored or expected[name].shape != stored[name].shape
    ]
    if differing:
        raise ValueError(
            f"{path} was written by another version, whose {checkpoint['config']['kind']} has "
            f"other weights ({first_few(differing, 1)}); train again with "
            f"{train_command(checkpoint['stage'], path)} --restart, or use the version that "
            f"wrote it"
        )


def _wrong_field(checkpoint: Checkpoint) -> str:
    """Say which field is not what it must be; empty where all are."""
    for key, kind in TYPES.items():
        value = checkpoint.get(key)
        if key in checkpoint and not (isinstance(value, kind) and not isinstance(value, bool)):
            return f"its {key} is {value!r:.40}"
        if isinstance(value, float) and not math.isfinite(value):
            return f"its {key} is {value}"
        if kind is int and isinstance(value, int) and value < 0:
            return f"its {key} is {value}"
    if checkpoint["stage"] not in SCRIPTS:
        return f"its stage is {checkpoint['stage']!r:.40}"
    size = checkpoint["image_size"]
    if len(size) != 2 or not all(type(side) is int and side > 0 for side in size):
        return f"its image_size is {size!r:.40}"
    if not isinstance(checkpoint["config"].get("kind"), str):
        return "its config names no kind"
    try:
        json.dumps(checkpoint["config"], sort_keys=True)
    except (TypeError, ValueError, RecursionError):
        return "its config holds more than plain values"
    for key in ("parent", "bc"):
        named = checkpoint.get(key, {"path": "", "fingerprint": ""})
        if not all(isinstance(named.get(part), str) for part in ("path", "fingerprint")):
            return f"its {key} is {named!r:.40}"
    for key in ("model", "ema"):
        for name, value in checkpoint.get(key, {}).items():
            if not isinstance(name, str) or not isinstance(value, Tensor):
                return f"its {key} holds no tensors"
    return ""


def _unusable(checkpoint: Checkpoint, path: Path, reason: str) -> ValueError:
    return ValueError(
        f"{path} cannot be used by this version ({reason}); train again with "
        f"{train_command(checkpoint['stage'], path)} --restart, or use the version that wrote it"
    )
