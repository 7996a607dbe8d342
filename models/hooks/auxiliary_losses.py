"""Auxiliary losses on what a model's layers give, added to its own loss: by name, with a weight.

A loss of weight 0 is not computed, and then the layer is not read.  Nothing here has weights: a
checkpoint is the same with and without them.

Letters: B clips, C frames that a layer's output stands for, n = B C, D width of all tokens of a
frame together, E width of a target.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from data.batch import Batch
from data.io.messages import first_few
from models.dynamics.dynamics import Dynamics
from models.hooks.layer_paths import find_layers
from models.hooks.loss_with_layers import loss_with_layers
from models.method import Losses

TEACHER = "teacher"
"""Field of a batch's `extra`: latents of another encoder at the same frames, (B, T, P, E)."""


@dataclass(frozen=True)
class AuxiliaryLoss:
    """A loss on the outputs of a layer, (n, D), and on a target, (n, E), where it has one."""

    compute: Callable[[Tensor, Tensor], Tensor]
    target: str = ""
    """Field of the batch, (B, T, ...), that it compares with at the same frames; else none."""


@dataclass(frozen=True)
class Wanted:
    """A loss that is asked for."""

    name: str
    path: str
    weight: float

    @property
    def term(self) -> str:
        """What it is called in the log."""
        return f"{self.name}@{self.path}"


def parse(text: str) -> Wanted:
    """Read NAME:LAYER:WEIGHT, such as feature_norm:transformer.layers.2:0.01; ValueError says what
    is wrong."""
    parts = text.split(":")
    try:
        (name, path, weight), number = parts, float(parts[-1])
    except ValueError:
        raise ValueError(
            f"--auxiliary {text} is not NAME:LAYER:WEIGHT, such as "
            f"feature_norm:transformer.layers.2:0.01"
        ) from None
    if name not in LOSSES:
        near = difflib.get_close_matches(name, LOSSES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {first_few(LOSSES)}"
        raise ValueError(f"--auxiliary {text}: no loss is called {name!r}; {hint}")
    if not 0 <= number < float("inf"):
        raise ValueError(f"--auxiliary {text}: a weight is a number from 0 on, not {weight}")
    return Wanted(name, path, number)


class AuxiliaryLosses:
    """A dynamics model's loss and those that are asked for, as one function: `loss`.

    Its terms are weighted, and called NAME@LAYER.
    """

    def __init__(self, model: Dynamics, wanted: tuple[str, ...], compiled: bool = False) -> None:
        """wanted: as `parse` reads them.  compiled: whether steps may be compiled, which hooks do
        not go with.  ValueError for a loss or a layer that there is not, or a loss that is asked
        for twice."""
        self.model = model
        asked: dict[str, Wanted] = {}
        for one in map(parse, wanted):
            if (first := asked.setdefault(one.term, one)) is not one:
                raise ValueError(
                    f"--auxiliary {one.term} is asked for twice, with weights {first.weight:g} and "
                    f"{one.weight:g}; give it once"
                )
        self.wanted = [one for one in asked.values() if one.weight]
        for one in self.wanted:
            if "*" in one.path:
                raise ValueError(f"--auxiliary {one.term}: name one layer for each loss")
            find_layers(model, [one.path])
        if self.wanted and compiled:
            raise ValueError(
                "--auxiliary reads layers by hooks, and compiled steps ignore those; leave "
                "--train.compile at no"
            )
        targets = {LOSSES[one.name].target for one in self.wanted} - {""}
        self.needs: frozenset[str] = frozenset(targets)
        """Fields of a batch that they read beyond the model's own."""

    @property
    def loss(self) -> Callable[[Batch], Losses]:
        """The model's own where no other is asked for."""
        return self._with_auxiliary if self.wanted else self.model.loss

    def _with_auxiliary(self, batch: Batch) -> Losses:
        paths = dict.fromkeys(one.path for one in self.wanted)
        losses, outputs, frames = loss_with_layers(self.model, batch, paths, detach=False)
        for one in self.wanted:
            kind, output = LOSSES[one.name], outputs[one.path]
            target = output
            if kind.target:
                (rows,) = batch.require(kind.target)
                target = rows[:, frames.start : frames.stop : frames.step]
            value = kind.compute(_as_rows(output), _as_rows(target))
            losses[one.term] = one.weight * value
        return losses


def _as_rows(values: Tensor) -> Tensor:
    """(B, C, ...) -> (n, D)."""
    return values.flatten(0, 1).flatten(1).float()


def feature_norm(output: Tensor, target: Tensor) -> Tensor:
    """Mean square of what a layer gives: keeps a residual stream from growing."""
    return output.square().mean()


def decorrelation(output: Tensor, target: Tensor) -> Tensor:
    """Mean square of the correlations of different features (VICReg, arXiv:2105.04906; Barlow
    Twins, arXiv:2103.03230)."""
    centered = output - output.mean(0)
    # of a constant feature, such as a layer's that starts at zero, the root alone has no gradient
    normed = centered / (centered.square().sum(0) + 1e-12).sqrt()
    correlations = normed.T @ normed
    width = len(correlations)
    off_diagonal = correlations.square().sum() - correlations.diagonal().square().sum()
    return off_diagonal / max(1, width * (width - 1))


def distill(output: Tensor, target: Tensor) -> Tensor:
    """1 minus linear CKA, from 0 to 1: frames that are alike in the target are alike in the layer
    (Kornblith et al., arXiv:1905.00414).  Widths need not agree, so there is no projection."""
    return 1 - linear_cka(output, target)


def linear_cka(x: Tensor, y: Tensor) -> Tensor:
    """Similarity of two representations of n frames, (n, D) and (n, E), from 0 to 1."""
    x, y = x - x.mean(0), y - y.mean(0)
    of_x, of_y = x @ x.T, y @ y.T  # n is a batch, and widths may be large
    scale = torch.linalg.matrix_norm(of_x) * torch.linalg.matrix_norm(of_y)
    return (of_x * of_y).sum() / (scale + 1e-12)


# A new loss is one line here; of one's own, LOSSES["name"] = AuxiliaryLoss(function).
LOSSES: dict[str, AuxiliaryLoss] = {
    "feature_norm": AuxiliaryLoss(feature_norm),
    "decorrelation": AuxiliaryLoss(decorrelation),
    "distill": AuxiliaryLoss(distill, target=TEACHER),
}
