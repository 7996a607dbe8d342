"""Whether a training may resume from a last.pt, and what it remembers then.

Data may have grown since: then training continues with the weights that there are, takes as many
steps again, and chooses its best.pt anew, since the held-out episodes are others.  A checkpoint's
field `growths` counts how often; `lineage` holds the fingerprints of the best.pt of before, on
which others may have been trained.
"""

from __future__ import annotations

from dataclasses import dataclass, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from data.io.messages import first_few
from models.config import to_plain
from models.registry import CONTROLLERS, DYNAMICS, TOKENIZERS, default_config
from pipeline import checkpoint as ckpt
from pipeline.lineage import follows
from pipeline.trained_on import TrainedOn, read_recordings
from pipeline.training.train_config import TrainConfig
from pipeline.training.train_step import TrainStep

RESUME_KEYS = (
    "ema", "optimizer", "step", "best", "bad_validations", "seconds", "lr_scale", "train"
)  # fmt: skip
BENEATH = ("parent", "bc", "flow_policy", "task_cost")
"""Checkpoints that one may have been made from; all but the first are the controller stage's."""
BELOW = {"dynamics": "tokenizer", "controller": "dynamics"}
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
    settings = metadata.get("settings", {})
    now = metadata["config"] | {"freeze": list(train.freeze), "optimizer": train.optimizer}
    now |= settings
    before = _completed(last["config"]) | {"freeze": list(last["train"].get("freeze", ()))}
    before |= {"optimizer": last["train"].get("optimizer", "adamw")}
    before |= last.get("settings") or settings  # begun before they were kept
    difference = _difference(before, now)
    if difference:
        name, old, new = difference
        raise ValueError(
            f"{path} was begun with {name} = {old!s:.60}, but now it is {new!s:.60}; "
            f"--restart starts over, another --run keeps both"
        )
    for key in BENEATH:
        current, begun_on = metadata.get(key), last.get(key)
        if current is None:
            continue
        if begun_on is None:
            raise ValueError(f"{path} holds no {key}; --restart starts over")
        if not _follows(current, begun_on["fingerprint"], last, metadata, key):
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
    """Raise ValueError where a training that resumes from `path` has other recordings by now: not
    those that it was begun on, with or without more."""
    found = read_recordings(last)
    if found is None or recordings is None or found["dataset"] == recordings["dataset"]:
        return
    before, now = found["train"].numpy(), recordings["train"].numpy()
    common = len(np.intersect1d(before, now))
    if common < len(before):
        raise ValueError(
            f"{path} was begun on other recordings: of its {len(before)} training episodes "
            f"{common} are among the {len(now)} of now; --restart starts over, another --run keeps "
            f"both"
        )


def has_grown(last: ckpt.Checkpoint, recordings: TrainedOn | None) -> bool:
    """Whether there are training episodes now that `last` was not trained on."""
    found = read_recordings(last)
    if found is None or recordings is None:
        return False
    return bool(len(np.setdiff1d(recordings["train"].numpy(), found["train"].numpy())))


@dataclass(frozen=True)
class Resumed:
    """What a training goes on with."""

    metadata: dict[str, Any]
    train: TrainConfig
    best: float | None
    """The best figure so far; None where the next one is the best."""
    bad: int
    """Validations in a row without a better one."""


def resumed(
    last: ckpt.Checkpoint, metadata: dict[str, Any], train: TrainConfig, best: Path
) -> Resumed:
    """Go on from `last`: with its recordings and those of the weights that it began with, or on
    data that has grown, with as many steps again.  best: the best.pt of before."""
    recordings, lineage = metadata.get("recordings"), list(last.get("lineage", []))
    growths, grown = last.get("growths", 0), has_grown(last, recordings)
    if grown:
        assert recordings is not None
        recordings, growths = (
            recordings | {"inherited": last["recordings"]["inherited"]},
            growths + 1,
        )
        if best.exists():
            lineage.append(ckpt.load(best, last["stage"])["fingerprint"])
    else:
        recordings = last.get("recordings")
    kept = {"growths": growths, "lineage": lineage} if growths else {}
    return Resumed(
        metadata | {"recordings": recordings} | kept,
        replace(train, steps=train.steps * (1 + growths)),
        # without best.pt, ended before its first was written, the next is the best
        None if grown or not best.exists() else last["best"],
        0 if grown else last["bad_validations"],
    )


def _follows(
    current: dict[str, Any],
    begun_on: str,
    last: ckpt.Checkpoint,
    metadata: dict[str, Any],
    key: str,
) -> bool:
    """Whether what is underneath is what it was, or has followed from that as the data grew."""
    if current["fingerprint"] == begun_on:
        return True
    recordings, found = metadata.get("recordings"), read_recordings(last)
    if recordings and found and current["fingerprint"] == recordings["dataset"]:
        return begun_on == found["dataset"]  # the shards, whose episodes have been checked
    stage = "controller" if key != "parent" else BELOW.get(last["stage"])
    path = Path(current["path"])
    return stage is not None and path.is_file() and follows(ckpt.load(path, stage), begun_on)


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


def _completed(config: dict[str, Any]) -> dict[str, Any]:
    """Settings of a method, with the defaults of those that were added since (`ADDED`)."""
    kind = config.get("kind")
    if kind not in TOKENIZERS | DYNAMICS | CONTROLLERS:
        return config
    return _with_added(default_config(kind), config)


def _with_added(default: Any, config: dict[str, Any]) -> dict[str, Any]:
    """The same of a config and of those within it."""
    values, added = to_plain(default), getattr(default, "ADDED", frozenset())
    found = {name: values[name] for name in sorted(added)} | config
    for name, value in config.items():
        inner = getattr(default, name, None)
        if isinstance(value, dict) and is_dataclass(inner):
            found[name] = _with_added(inner, value)
    return found


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
