"""Whether a training may resume from a last.pt."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from data.io.messages import first_few
from pipeline import checkpoint as ckpt
from pipeline.trained_on import TrainedOn, read_recordings
from pipeline.training.train_config import TrainConfig
from pipeline.training.train_step import TrainStep

RESUME_KEYS = (
    "ema", "optimizer", "step", "best", "bad_validations", "seconds", "lr_scale", "train"
)  # fmt: skip
FREE = "activation_checkpointing"  # a setting that changes no result, and so may change


def check_resumable(
    last: ckpt.Checkpoint,
    path: Path,
    metadata: dict[str, Any],
    train: TrainConfig,
    model: nn.Module,
) -> None:
    """Raise ValueError where `last`, read from `path`, is of other settings, recordings or weights
    than the training of now, or holds nothing to resume from."""
    missing = first_few(key for key in RESUME_KEYS if key not in last)
    if missing:
        raise ValueError(
            f"{path} holds no {missing}, so there is nothing to resume from (a copy of a "
            f"best.pt?); --restart starts over"
        )
    check_resumed_recordings(last, path, metadata.get("recordings"))
    now = metadata["config"] | {"freeze": list(train.freeze)}
    before = last["config"] | {"freeze": list(last["train"].get("freeze", ()))}
    difference = _difference(before, now)
    if difference:
        name, old, new = difference
        raise ValueError(
            f"{path} was begun with {name} = {old!s:.60}, but now it is {new!s:.60}; "
            f"--restart starts over, another --run keeps both"
        )
    for key in ("parent", "bc"):  # a clone is only beneath an actor-critic
        current, begun_on = metadata.get(key), last.get(key)
        if current is None:
            continue
        if begun_on is None:
            raise ValueError(f"{path} holds no {key}; --restart starts over")
        if current["fingerprint"] != begun_on["fingerprint"]:
            raise ValueError(
                f"{path} was begun on {begun_on['path']} with fingerprint "
                f"{begun_on['fingerprint']}, but now it is {current['fingerprint']}; "
                f"--restart starts over"
            )
    ckpt.check_same_weights(model, last, path)


def with_former_init(train: TrainConfig, last: ckpt.Checkpoint) -> TrainConfig:
    """Settings of a resumed training: its learning rate is that of weights of another run where it
    began with such, whether or not that is said again."""
    before = last["train"]
    if "init_lr_scale" not in before:  # begun before there was such a setting
        return replace(train, init_lr_scale=1.0)
    scale = train.init_lr_scale if train.init_from else before["init_lr_scale"]
    return replace(train, init_from=before["init_from"], init_lr_scale=scale)


def check_resumed_recordings(
    last: ckpt.Checkpoint, path: Path, recordings: TrainedOn | None
) -> None:
    """Raise ValueError where a training that resumes from `path` has other recordings by now."""
    found = read_recordings(last)
    if found is None or recordings is None or found["dataset"] == recordings["dataset"]:
        return
    before, now = found["train"].numpy(), recordings["train"].numpy()
    if not np.array_equal(before, now):
        common = len(np.intersect1d(before, now))
        raise ValueError(
            f"{path} was begun on other recordings: of its {len(before)} training episodes "
            f"{common} are among the {len(now)} of now; --restart starts over, another --run keeps "
            f"both"
        )


def check_resumed_state(step_fn: TrainStep) -> None:
    """Raise ValueError where the averages or the optimizer's state are of other weights than the
    model's: PyTorch takes them over, and ends without a word at the next step."""
    averages, state = step_fn.ema.weights, step_fn.optimizer.state
    for name, weight in step_fn.model.named_parameters():
        if weight.requires_grad and (name not in averages or averages[name].shape != weight.shape):
            raise ValueError(f"its ema is not of the model's {name}")
        for key, value in state.get(weight, {}).items():
            if isinstance(value, Tensor) and value.ndim and value.shape != weight.shape:
                raise ValueError(f"its optimizer's {key} is not of the model's {name}")


def _difference(
    before: dict[str, Any], now: dict[str, Any], prefix: str = ""
) -> tuple[str, Any, Any] | None:
    """The first setting that differs: its name, and both values."""
    for key in [*now, *(before.keys() - now.keys())]:
        old, new = before.get(key), now.get(key)
        if key == FREE or old == new:
            continue
        if not (isinstance(old, dict) and isinstance(new, dict)):
            return f"{prefix}{key}", old, new
        if found := _difference(old, new, f"{prefix}{key}."):
            return found
    return None
