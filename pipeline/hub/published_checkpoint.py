"""A checkpoint as two files that no code runs on loading: model.safetensors and checkpoint.json.

The weights keep their names; everything else that the checkpoint says is JSON.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.io.files import parse_json, read_text
from data.io.messages import one_line
from pipeline import checkpoint as ckpt
from pipeline import tensor_file

WEIGHTS_FILE, FIELDS_FILE = "model.safetensors", "checkpoint.json"
TENSOR = "int64"  # key of a list that stands for a tensor: those of episodes are all there are


def write(folder: Path, checkpoint: ckpt.Checkpoint) -> None:
    """Write both files into a folder, which is made."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    fields = {key: _to_json(value) for key, value in checkpoint.items() if key != "model"}
    as_read = _from_json(json.loads(json.dumps(fields, allow_nan=False)))
    text = json.dumps(fields | {tensor_file.DIGEST: tensor_file.digest(as_read)}, indent=1)
    # weights that share memory are refused, and those that are not contiguous
    weights = {name: t.detach().clone().contiguous() for name, t in checkpoint["model"].items()}
    # "pt" for readers that refuse files without it.  Nothing else: of two, the order is by chance,
    # and weights that did not change would be sent again
    save_file(weights, folder / WEIGHTS_FILE, {"format": "pt"})
    (folder / FIELDS_FILE).write_text(text + "\n")


def read(folder: Path) -> ckpt.Checkpoint:
    """Read both files; ValueError where they are not those that were written together."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        checkpoint = _from_json(parse_json(read_text(folder / FIELDS_FILE)))
        if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("config"), dict):
            raise ValueError("it holds no checkpoint")
        if checkpoint.get(tensor_file.DIGEST) != tensor_file.digest(checkpoint):
            raise ValueError("its digest is that of other values")
    except (OSError, ValueError, TypeError, OverflowError, RuntimeError) as problem:
        raise ValueError(f"{FIELDS_FILE} is damaged ({one_line(problem)})") from None
    try:
        weights = load_file(folder / WEIGHTS_FILE)
    except (OSError, SafetensorError) as problem:
        raise ValueError(f"{WEIGHTS_FILE} is damaged ({one_line(problem)})") from None
    actual = ckpt.fingerprint(weights, checkpoint["config"])
    if actual != checkpoint.get("fingerprint"):
        raise ValueError(
            f"{WEIGHTS_FILE} is damaged: its fingerprint is {actual}, and {FIELDS_FILE} has "
            f"{checkpoint.get('fingerprint')!s:.20}"
        )
    return checkpoint | {"model": weights}


def _to_json(value: Any) -> Any:
    if isinstance(value, Tensor):
        assert value.dtype == torch.int64 and value.dim() == 1, value
        return {TENSOR: value.tolist()}
    if isinstance(value, dict):
        return {key: _to_json(inner) for key, inner in value.items()}
    return [_to_json(inner) for inner in value] if isinstance(value, list | tuple) else value


def _from_json(value: Any) -> Any:
    if isinstance(value, dict):
        if value.keys() == {TENSOR}:
            return torch.tensor(value[TENSOR], dtype=torch.int64)
        return {key: _from_json(inner) for key, inner in value.items()}
    return [_from_json(inner) for inner in value] if isinstance(value, list) else value
