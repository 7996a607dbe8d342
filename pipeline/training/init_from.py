"""Weights from another run, and weights that stay as they are."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from torch import nn

from data.io.messages import first_few
from models.method import TrainableModule
from pipeline import checkpoint as ckpt
from pipeline.lineage import inherit
from pipeline.trained_on import TrainedOn
from pipeline.training.train_config import TrainConfig

LISTED = 20
"""Names of weights that a line lists; of more it gives the number."""


@dataclass(frozen=True)
class Taken:
    """What a model took from another run's checkpoint."""

    path: str
    fingerprint: str
    taken: list[str]
    left: dict[str, list[str]]
    """Weights of this model that are as they began, by the reason."""
    changed: list[str]
    """What the method changed of the checkpoint's weights, to take them."""

    def describe(self) -> list[str]:
        """Lines to print."""
        lines = [f"init: {len(self.taken)} tensors from {self.path}"]
        lines += [f"init: {change}" for change in self.changed]
        for reason, names in self.left.items():
            more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
            lines.append(f"init: as they began, {reason}: {', '.join(names[:LISTED])}{more}")
        return lines


def begin(
    model: TrainableModule,
    train: TrainConfig,
    folder: Path,
    stage: str,
    resuming: bool,
    flag_prefix: str,
    metadata: dict[str, Any],
) -> tuple[list[str], TrainedOn | None]:
    """Do what a training config says of both; give lines to print, and the recordings of the
    metadata with those that the weights which were taken have seen.

    folder: of the training, such as RUN/controller/bc.  metadata: what a checkpoint says of the
    model.  A run that resumes has its weights.
    """
    lines: list[str] = []
    recordings = metadata.get("recordings")
    if train.init_from and resuming:
        lines.append(f"init: {train.init_from} is not read, since this run resumes")
    elif train.init_from:
        parts = folder.parts  # RUN/controller/bc -> controller/bc
        last = len(parts) - 1
        first = last - parts[::-1].index(stage) if stage in parts else last
        place = Path(*parts[first:])
        actions = metadata.get("actions")
        taken, source = init_from(model, train.init_from, place, stage, flag_prefix, actions)
        recordings = inherit(recordings, source)
        lines += taken.describe()
        lines.append(
            f"init: the learning rate is {train.peak_learning_rate:.3g}, "
            f"{train.init_lr_scale:g} of --{flag_prefix}.learning-rate "
            f"(--{flag_prefix}.init-lr-scale)"
        )
    if train.freeze:
        names = freeze(model, train.freeze, flag_prefix)
        frozen = sum(p.numel() for n, p in model.named_parameters() if n in names)
        lines.append(f"freeze: {len(names)} tensors, {frozen / 1e6:.2f} M parameters")
    return lines, recordings


def init_from(
    model: TrainableModule,
    source: str,
    folder: Path,
    stage: str,
    flag_prefix: str = "train",
    actions: dict[str, Any] | None = None,
) -> tuple[Taken, ckpt.Checkpoint]:
    """Copy weights by name and shape from `source`, a run folder, a checkpoint's file or a
    published run (hf://USER/NAME@REVISION); give what was taken, and its checkpoint.  The method
    may rename them first (`convert_weights`).

    folder: that of this stage within its run, such as controller/bc.  actions: the model's action
    space; where the checkpoint has another one, what reads or gives actions stays as it began.
    ValueError where there is nothing to take.
    """
    path = Path(source)
    if source.startswith("hf://"):
        from pipeline.hub.pull_run import local_run

        path = local_run(source, f"--{flag_prefix}.init-from")
    if not path.exists():
        raise ValueError(
            f"--{flag_prefix}.init-from {source}: there is no such file or folder; give "
            f"a run folder or a best.pt"
        )
    if path.is_dir():
        path = path / folder / "best.pt"
    checkpoint = ckpt.load(path, stage)
    try:
        given, changed = model.convert_weights(checkpoint["model"], checkpoint["config"])
    except ValueError as problem:
        raise ValueError(f"--{flag_prefix}.init-from {path}: {problem}") from None
    own = model.state_dict()
    of_actions = _of_actions(model) if actions not in (None, checkpoint["actions"]) else set()
    taken, left = [], {}
    for name, value in own.items():
        if name not in given:
            left.setdefault("not in the checkpoint", []).append(name)
        elif value.shape != given[name].shape:
            shapes = f"{name} {tuple(value.shape)} not {tuple(given[name].shape)}"
            left.setdefault("of another shape there", []).append(shapes)
        elif name in of_actions:
            left.setdefault("since the action space is another one", []).append(name)
        else:
            taken.append(name)
    if not taken:
        raise ValueError(
            f"{path} has no weight of the same name and shape as this {stage} "
            f"({first_few(list(own))} here, {first_few(list(given))} there); give "
            f"another --{flag_prefix}.init-from"
        )
    model.load_state_dict({name: given[name] for name in taken}, strict=False)
    return Taken(str(path), checkpoint["fingerprint"], taken, left, changed), checkpoint


def _of_actions(model: nn.Module) -> set[str]:
    """Names of the weights whose meaning is that of the action space."""
    modules = [(path, m) for path, m in model.named_modules() if getattr(m, "is_of_actions", False)]
    return {f"{path}.{name}" for path, module in modules for name in module.state_dict()}


def freeze(model: nn.Module, patterns: tuple[str, ...], flag_prefix: str = "train") -> set[str]:
    """Take the gradient from every weight whose name matches a pattern ("encoder.*").

    Returns the names of what stays, weights and buffers; ValueError for a pattern that matches
    none.
    """
    frozen: set[str] = set()
    names = list(model.state_dict())
    for pattern in patterns:
        matching = {name for name in names if fnmatchcase(name, pattern)}
        if not matching:
            heads = sorted({name.partition(".")[0] for name in names})
            raise ValueError(
                f"--{flag_prefix}.freeze {pattern} matches no weight; they begin with "
                f"{first_few(heads)}"
            )
        frozen |= matching
    for name, parameter in model.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)
    return frozen


def describe_trained(model: nn.Module) -> str:
    """A line of how many parameters are trained, part by part."""
    parts = []
    for name, part in model.named_children():
        total = sum(p.numel() for p in part.parameters())
        trained = sum(p.numel() for p in part.parameters() if p.requires_grad)
        parts += [f"{name} {trained:,} of {total:,}"] if total else []
    return f"trained parameters: {', '.join(parts)}"


def frozen_modules(model: nn.Module, patterns: tuple[str, ...]) -> list[nn.Module]:
    """Submodules of which everything is frozen: they stay in eval mode, so that dropout and running
    statistics stand still, too."""
    names = list(model.state_dict())
    frozen = {n for n in names if any(fnmatchcase(n, pattern) for pattern in patterns)}
    found = []
    for path, module in model.named_modules():
        inside = [n for n in names if n.startswith(f"{path}.")]
        if path and inside and frozen.issuperset(inside):
            found.append(module)
    return found
