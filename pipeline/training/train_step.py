"""Steps down a model's loss: gradient, clipping, optimizer, average; on one device or many."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from models.world import Arithmetic, arithmetic
from pipeline.graphed import Graphed
from pipeline.training import fsdp
from pipeline.training.auto_compile import Compiling
from pipeline.training.ema import Average
from pipeline.training.logger import say
from pipeline.training.nan_guard import Finite, Losses
from pipeline.training.train_config import TrainConfig


class Descent:
    """The optimizer of `model` on `objective`, which gives named loss terms; those that carry a
    gradient are added up."""

    def __init__(
        self,
        model: nn.Module,
        objective: Callable[..., Losses],
        train: TrainConfig,
        accelerator: Accelerator,
        precision: Arithmetic,
        finite: Finite,
        flags: str = "train",
    ) -> None:
        self.model, self.train, self.finite, self.flags = model, train, finite, flags
        self.precision: Arithmetic = precision
        self.accelerator, self.device = accelerator, accelerator.device
        self.objective = _Objective(model, objective)
        self.twin: nn.Module | None = None  # of a sharded model: whole, for validation
        if train.sharding == "fsdp" and accelerator.num_processes > 1:
            self.twin = copy.deepcopy(model).cpu()
            fsdp.shard(self.objective, self.device)
        if train.graph and (precision == "fp16" or accelerator.num_processes > 1):
            raise ValueError(
                f"--{flags}.graph records the steps of one process in bf16 or fp32, but there are "
                f"{accelerator.num_processes} process(es) in {precision}"
            )
        self.trained = [p for p in model.parameters() if p.requires_grad]
        # a recording reads the learning rate where it lies; a number would stay as it was
        self._rate = torch.tensor(train.learning_rate, device=self.device) if train.graph else None
        self._recordable = train.graph and self.device.type == "cuda"
        rate: Any = train.learning_rate if self._rate is None else self._rate
        optimizer = torch.optim.AdamW(
            self.trained,
            lr=rate,
            betas=(0.9, train.beta2),
            weight_decay=train.weight_decay,
            fused=self.device.type in ("cuda", "cpu") or None,
            capturable=self._recordable,
        )
        self.optimizer = accelerator.prepare(optimizer)
        self.compiling = Compiling(
            self.objective, train.compile, partial(say, accelerator), self._record_anew, flags
        )
        self.wrapped = self.objective if self.twin else accelerator.prepare(self.objective)
        # fp16 ends at 65504 and at 6e-8: losses are scaled up, what overflows then is left out
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "fp16")
        self.average = Average(model, train.average)
        self._names: list[str] = []
        self._whole_step: Graphed | None = None
        self._record_anew()

    def take_step(self, step: int, rate: float, tensors: tuple[Tensor | None, ...]) -> Losses:
        """Take step `step` at a learning rate; the first axis of the tensors is the batch.

        Gives the terms, and the gradient's norm as `grad_norm`.
        """
        self.model.train()
        if self._rate is not None:
            self._rate.fill_(rate)
        for group in self.optimizer.param_groups:
            group["lr"] = rate if self._rate is None else self._rate
        with self.compiling.timed(self.train.steps - step - 1):
            # a model says so where its first steps are of another kind, and look at values
            settled = getattr(self.model, "settled", True)
            if self._whole_step is None or not settled:
                return self._take_step(step, tensors)
            values = [value.clone() for value in self._whole_step(*tensors)]
            losses = dict(zip(self._names, values, strict=True))
            self._expect_finite(step, losses)
            self.average.follow(step)
            del losses["loss"]
            return losses

    def _record_anew(self) -> None:
        """Have the next steps recorded, if they are: a recording holds what is not compiled."""
        if self.train.graph:
            self._whole_step = Graphed(self._follow_gradient, self.device, f"--{self.flags}.graph")

    def _take_step(self, step: int, tensors: tuple[Tensor | None, ...]) -> Losses:
        losses = self._gradient(tensors)
        if not self.scaler.is_enabled():
            self._expect_finite(step, losses)
        else:
            self.finite.expect("loss", losses["loss"], step, losses)
        scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.scaler.get_scale() >= scale:  # it falls when a step is left out
            self.average.follow(step)
        del losses["loss"]
        return losses

    def _follow_gradient(self, *tensors: Tensor | None) -> list[Tensor]:
        """A whole step in which nothing looks at a value."""
        self.optimizer.zero_grad(set_to_none=True)
        losses = self._gradient(tensors)
        self.optimizer.step()
        self._names = list(losses)
        return list(losses.values())

    def _gradient(self, tensors: tuple[Tensor | None, ...]) -> Losses:
        """Leave the clipped gradient in the weights: terms, their sum `loss`, and `grad_norm`."""
        rows = len(next(t for t in tensors if t is not None))
        parts = min(self.train.accumulate, rows)
        bounds = [rows * i // parts for i in range(parts + 1)]
        totals: Losses = {}
        goes_on = self.device.type == "cuda"  # nothing in here may wait for the GPU
        to_device = partial(Tensor.to, device=self.device, non_blocking=goes_on)
        for low, high in pairwise(bounds):
            chunk = [None if t is None else to_device(t[low:high]) for t in tensors]
            with arithmetic(self.device, self.precision):
                losses = self.wrapped(*chunk)
            share = (high - low) / rows
            total = sum((v for v in losses.values() if v.requires_grad), torch.zeros(()))
            self.accelerator.backward(self.scaler.scale(total * share))
            for name, value in (losses | {"loss": total}).items():
                totals[name] = totals.get(name, torch.zeros(())) + value.detach() * share
        self.scaler.unscale_(self.optimizer)
        norm = self.accelerator.clip_grad_norm_(self.wrapped.parameters(), self.train.clip)
        return totals | {"grad_norm": fsdp.whole(norm, self.device)}

    def _expect_finite(self, step: int, losses: Losses) -> None:
        self.finite.expect("loss", losses["loss"], step, losses)
        self.finite.expect("gradient", losses["grad_norm"], step, losses)

    # -- state ------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """What resuming needs, whole; every process has to call it."""
        return {
            "model": fsdp.whole(self.model.state_dict()),
            "average": fsdp.whole(self.average.weights),
            "optimizer": fsdp.whole(self.optimizer.state_dict()),
            "scaler": self.scaler.state_dict(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from `state()`."""
        self.model.load_state_dict(fsdp.parted(state["model"], self.model.state_dict()))
        self.average.weights = fsdp.parted(state["average"], self.average.weights)
        fsdp.load_optimizer(self.optimizer, state["optimizer"])
        for group in self.optimizer.param_groups:  # it may come from a run without --train.graph
            group["capturable"] = self._recordable
        if self.scaler.is_enabled() and state.get("scaler"):
            self.scaler.load_state_dict(state["scaler"])


class _Objective(nn.Module):
    """The loss as a forward pass, which is where DDP listens."""

    def __init__(self, model: nn.Module, function: Callable[..., Losses]) -> None:
        super().__init__()
        self.model = model
        self.function = function

    def forward(self, *tensors: Tensor | None) -> Losses:
        return self.function(*tensors)
