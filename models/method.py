"""What every method is to the training loop, whatever its role."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

from torch import Tensor, nn

from data.batch import Batch

Losses = dict[str, Tensor]


class ExternalWeightsError(ValueError):
    """Weights that a checkpoint names instead of holding cannot be had, or are others."""


@dataclass(frozen=True)
class Best:
    """The validation metric by which best.pt is chosen."""

    metric: str
    higher_is_better: bool = True


class TrainableModule(nn.Module):
    """An nn.Module that the trainer can train; a method overrides what is different about it.

    A subclass defines `loss(batch, ...) -> Losses`: named terms, of which those with a gradient
    are added up.  Where it cannot be validated as its role is, it also defines
    `validate(batches) -> dict`, and names the metric in `best`.  A submodule that reads or gives
    actions says so, `is_of_actions = True`: weights of another action space are not taken for it.
    """

    config: Any
    """Its own dataclass, which stands in models/registry.py."""
    needs: frozenset[str] = frozenset()
    """Fields of a Batch that its loss reads; rewards and continues where the data has them."""
    best: ClassVar[Best] = Best("psnr")
    turns: tuple[int, ...] = ()
    """Steps at which another part begins to learn: the learning rate's schedule starts anew."""

    @property
    def clip_length(self) -> int:
        """Frames of a training clip: 1 where each frame is learned alone."""
        return 1

    @property
    def capturable(self) -> bool:
        """Steps are alike from now on, so that one can be captured as a CUDA graph."""
        return True

    def after_step(self) -> None:
        """Move what does not move by gradient: codebooks, EMA targets, slow critics.

        Called once after each optimizer step, however many micro-batches it had, and inside the
        CUDA graph: nothing in it may wait for the GPU.
        """

    def advise(self, losses: dict[str, float]) -> list[str]:
        """Lines for whoever trains it, from the terms of a step that is logged."""
        return []

    def convert_weights(
        self, state: dict[str, Tensor], config: dict[str, Any]
    ) -> tuple[dict[str, Tensor], list[str]]:
        """Give another run's weights under the names of this model, and lines on what was changed.

        state: the weights that its checkpoint holds.  config: its method's config as plain values.
        ValueError says which weights do not fit this config.
        """
        return state, []

    def remarks(self) -> list[str]:
        """Lines for whoever trains it, before the first step of a new training."""
        return []

    def param_groups(self) -> list[dict[str, Any]]:
        """Groups for the optimizer; `lr_scale` of a group multiplies the learning rate."""
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]

    def fsdp_units(self) -> list[nn.Module]:
        """Submodules that FSDP gathers one at a time; the rest is gathered for a whole step."""
        return [m for m in self.modules() if getattr(m, "is_fsdp_unit", False)]


@runtime_checkable
class Validates(Protocol):
    """A method with a validation of its own."""

    def validate(self, held_out: Batch) -> dict[str, float]:
        """Metrics on held-out clips, `best.metric` among them."""
        ...


class CompileFn(Protocol):
    def __call__(self, module: nn.Module, function: Callable[..., Any]) -> Callable[..., Any]:
        """Compile `function`, a method of `module`."""
        ...
