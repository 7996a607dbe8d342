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

from models.world import Precision, autocast
from pipeline.graphed import StaticCudaGraph
from pipeline.training import fsdp
from pipeline.training.auto_compile import AutoCompile
from pipeline.training.ema import Ema
from pipeline.training.logger import log_line
from pipeline.training.nan_guard import Losses, NanGuard
from pipeline.training.train_config import TrainConfig


class TrainStep:
    """The optimizer of `model` on `objective`, which gives named loss terms; those that carry a
    gradient are added up."""

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Callable[..., Losses],
        train: TrainConfig,
        accelerator: Accelerator,
        precision: Precision,
        nan_guard: NanGuard,
        flag_prefix: str = "train",
    ) -> None:
        self.model, self.train, self.nan_guard, self.flag_prefix = (
            model,
            train,
            nan_guard,
            flag_prefix,
        )
        self.precision: Precision = precision
        self.accelerator, self.device = accelerator, accelerator.device
        self.loss_module = _LossModule(model, loss_fn)
        self.unsharded: nn.Module | None = None  # of a sharded model: whole, for validation
        if train.sharding == "fsdp" and accelerator.num_processes > 1:
            self.unsharded = copy.deepcopy(model).cpu()
            fsdp.shard(self.loss_module, self.device)
        if train.cuda_graph and (precision == "fp16" or accelerator.num_processes > 1):
            raise ValueError(
                f"--{flag_prefix}.graph records the steps of one process in bf16 or fp32, but there are "
                f"{accelerator.num_processes} process(es) in {precision}"
            )
        self.trainable = [p for p in model.parameters() if p.requires_grad]
        # a recording reads the learning rate where it lies; a number would stay as it was
        self._lr = (
            torch.tensor(train.learning_rate, device=self.device) if train.cuda_graph else None
        )
        self._capturable = train.cuda_graph and self.device.type == "cuda"
        lr: Any = train.learning_rate if self._lr is None else self._lr
        optimizer = torch.optim.AdamW(
            self.trainable,
            lr=lr,
            betas=(0.9, train.beta2),
            weight_decay=train.weight_decay,
            fused=self.device.type in ("cuda", "cpu") or None,
            capturable=self._capturable,
        )
        self.optimizer = accelerator.preprocess(optimizer)
        self.auto_compile = AutoCompile(
            self.loss_module,
            train.compile,
            partial(log_line, accelerator),
            self._reset_graph,
            flag_prefix,
        )
        self.prepared_loss = (
            self.loss_module if self.unsharded else accelerator.preprocess(self.loss_module)
        )
        # fp16 ends at 65504 and at 6e-8: losses are scaled up, what overflows then is left out
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "fp16")
        self.ema = Ema(model, train.ema_decay)
        self._loss_names: list[str] = []
        self._graph_step: StaticCudaGraph | None = None
        self._reset_graph()

    def train_step(self, step: int, lr: float, tensors: tuple[Tensor | None, ...]) -> Losses:
        """Take step `step` at a learning rate; the first axis of the tensors is the batch.

        Gives the terms, and the gradient's norm as `grad_norm`.
        """
        self.model.train()
        if self._lr is not None:
            self._lr.fill_(lr)
        for group in self.optimizer.param_groups:
            group["lr"] = lr if self._lr is None else self._lr
        with self.auto_compile.time_step(self.train.steps - step - 1):
            # a model says so where its first steps are of another kind, and look at values
            initialized = getattr(self.model, "settled", True)
            if self._graph_step is None or not initialized:
                return self._eager_step(step, tensors)
            values = [value.clone() for value in self._graph_step(*tensors)]
            losses = dict(zip(self._loss_names, values, strict=True))
            self._check_finite(step, losses)
            self.ema.update(step)
            del losses["loss"]
            return losses

    def _reset_graph(self) -> None:
        """Have the next steps recorded, if they are: a recording holds what is not compiled."""
        if self.train.cuda_graph:
            self._graph_step = StaticCudaGraph(
                self._capturable_step, self.device, f"--{self.flag_prefix}.graph"
            )

    def _eager_step(self, step: int, tensors: tuple[Tensor | None, ...]) -> Losses:
        losses = self._backward(tensors)
        if not self.scaler.is_enabled():
            self._check_finite(step, losses)
        else:
            self.nan_guard.add("loss", losses["loss"], step, losses)
        loss_scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.scaler.get_scale() >= loss_scale:  # it falls when a step is left out
            self.ema.update(step)
        del losses["loss"]
        return losses

    def _capturable_step(self, *tensors: Tensor | None) -> list[Tensor]:
        """A whole step in which nothing looks at a value."""
        self.optimizer.zero_grad(set_to_none=True)
        losses = self._backward(tensors)
        self.optimizer.step()
        self._loss_names = list(losses)
        return list(losses.values())

    def _backward(self, tensors: tuple[Tensor | None, ...]) -> Losses:
        """Leave the clipped gradient in the weights: terms, their sum `loss`, and `grad_norm`."""
        batch_size = len(next(t for t in tensors if t is not None))
        num_micro_batches = min(self.train.grad_accum_steps, batch_size)
        bounds = [batch_size * i // num_micro_batches for i in range(num_micro_batches + 1)]
        totals: Losses = {}
        non_blocking = self.device.type == "cuda"  # nothing in here may wait for the GPU
        to_device = partial(Tensor.to, device=self.device, non_blocking=non_blocking)
        for low, high in pairwise(bounds):
            micro_batch = [None if t is None else to_device(t[low:high]) for t in tensors]
            with autocast(self.device, self.precision):
                losses = self.prepared_loss(*micro_batch)
            fraction = (high - low) / batch_size
            total = sum((v for v in losses.values() if v.requires_grad), torch.zeros(()))
            self.accelerator.backward(self.scaler.scale(total * fraction))
            for name, value in (losses | {"loss": total}).items():
                totals[name] = totals.get(name, torch.zeros(())) + value.detach() * fraction
        self.scaler.unscale_(self.optimizer)
        grad_norm = self.accelerator.clip_grad_norm_(
            self.prepared_loss.parameters(), self.train.max_grad_norm
        )
        return totals | {"grad_norm": fsdp.mixture(grad_norm, self.device)}

    def _check_finite(self, step: int, losses: Losses) -> None:
        self.nan_guard.add("loss", losses["loss"], step, losses)
        self.nan_guard.add("gradient", losses["grad_norm"], step, losses)

    # -- state ------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What resuming needs, whole; every process has to call it."""
        return {
            "model": fsdp.mixture(self.model.state_dict()),
            "average": fsdp.mixture(self.ema.weights),
            "optimizer": fsdp.mixture(self.optimizer.state_dict()),
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state()`."""
        self.model.load_state_dict(fsdp.shard_like(state["model"], self.model.state_dict()))
        self.ema.weights = fsdp.shard_like(state["average"], self.ema.weights)
        fsdp.load_optimizer(self.optimizer, state["optimizer"])
        for group in self.optimizer.param_groups:  # it may come from a run without --train.graph
            group["capturable"] = self._capturable
        if self.scaler.is_enabled() and state.get("scaler"):
            self.scaler.load_state_dict(state["scaler"])


class _LossModule(nn.Module):
    """The loss as a forward pass, which is where DDP listens."""

    def __init__(self, model: nn.Module, loss_fn: Callable[..., Losses]) -> None:
        super().__init__()
        self.model = model
        self.loss_fn = loss_fn

    def forward(self, *tensors: Tensor | None) -> Losses:
        return self.loss_fn(*tensors)
