"""One step of training: gradient, clipping, optimizer, EMA; on one device or many."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from data.batch import Batch
from models.layers.precision import Precision, autocast
from models.method import Losses, TrainableModule
from pipeline.training.logger import log_line
from pipeline.training.nan_guard import NanGuard
from pipeline.training.train_config import TrainConfig

if TYPE_CHECKING:
    from pipeline.cuda_graph import StaticCudaGraph
    from pipeline.training.auto_compile import AutoCompile

LossFn = Callable[..., Losses]
RESERVED = {"loss", "grad_norm"}


class TrainStep:
    """The optimizer of `model`, on a loss that gives named terms; those with a gradient are added
    up as `loss`."""

    def __init__(
        self,
        model: TrainableModule,
        train: TrainConfig,
        accelerator: Accelerator,
        precision: Precision,
        nan_guard: NanGuard,
        flag_prefix: str = "train",
    ) -> None:
        self.model, self.train, self.nan_guard = model, train, nan_guard
        self.flag_prefix = flag_prefix
        self.precision: Precision = precision
        self.accelerator, self.device = accelerator, accelerator.device
        self.loss_module = _LossModule(model)
        self.frozen_parameters = sum(p.numel() for p in model.parameters() if not p.requires_grad)
        if self.frozen_parameters:
            from pipeline.training.init_from import describe_trained

            log_line(accelerator, describe_trained(model))
        self.unsharded: nn.Module | None = None  # of a sharded model: whole, for validation
        if train.cuda_graph and (precision == "fp16" or accelerator.num_processes > 1):
            raise ValueError(
                f"--{flag_prefix}.cuda-graph captures the steps of one process in bf16 or fp32, "
                f"but there are {accelerator.num_processes} process(es) in {precision}"
            )
        if train.sharding == "fsdp" and accelerator.num_processes > 1:
            from pipeline.training import fsdp

            self.unsharded = copy.deepcopy(model).cpu()
            fsdp.shard(self.loss_module, model.fsdp_units(), self.device)
        self._frozen: list[nn.Module] = []
        if train.freeze:
            from pipeline.training.init_from import frozen_modules

            self._frozen = frozen_modules(model, train.freeze)
        self.optimizer = accelerator.prepare(self._make_optimizer(model.param_groups()))
        self.auto_compile: AutoCompile | None = None
        if train.compile != "no":
            from pipeline.training.auto_compile import AutoCompile

            self.auto_compile = AutoCompile(
                self.loss_module,
                train.compile,
                partial(log_line, accelerator),
                self._reset_graph,
                flag_prefix,
            )
        self.prepared_loss = (
            self.loss_module if self.unsharded else accelerator.prepare(self.loss_module)
        )
        # fp16 ends at 65504 and at 6e-8: losses are scaled up, what overflows then is skipped
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "fp16")
        self.ema = Ema(model, train.ema_decay)
        self._loss_names: list[str] = []
        self._graph_step: StaticCudaGraph | None = None
        self._reset_graph()

    def _make_optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """A captured step reads learning rates as tensors; a number would stay as it was."""
        train = self.train
        self._capturable = train.cuda_graph and self.device.type == "cuda"
        for group in groups:
            group.setdefault("lr_scale", 1.0)
            rate = train.learning_rate * group["lr_scale"]
            group["lr"] = torch.tensor(rate, device=self.device) if train.cuda_graph else rate
        self.trainable = [p for group in groups for p in group["params"]]
        if not self.trainable:
            raise ValueError(
                f"--{self.flag_prefix}.freeze leaves no weight to train; leave a pattern out"
            )
        make: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW
        if train.optimizer == "muon":
            from pipeline.training.muon import muon_for

            is_sharded = self.unsharded is not None
            make = muon_for(self.model, is_sharded, self.precision, self.flag_prefix)
        return make(
            groups,
            betas=(0.9, train.beta2),
            weight_decay=train.weight_decay,
            fused=self.device.type in ("cuda", "cpu") or None,
            capturable=self._capturable,
        )

    def __call__(
        self, step: int, lr: float, loss_fn: LossFn, batch: Batch, *context: Any
    ) -> Losses:
        """Take step `step` at learning rate `lr` on loss_fn(batch, *context).

        Gives the terms, their sum as `loss`, and the gradient's norm as `grad_norm`.
        """
        self.loss_module.loss_fn, self.loss_module.context = loss_fn, context
        self.model.train()
        for module in self._frozen:
            module.eval()
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr * group["lr_scale"])
            else:
                group["lr"] = lr * group["lr_scale"]
        timed = self.auto_compile if step >= max(self.model.turns, default=0) else None
        with timed.time_step(self.train.steps - step - 1) if timed else nullcontext():
            if self._graph_step is None or not self.model.capturable:
                return self._eager_step(step, batch)
            return self._replayed_step(self._graph_step, step, batch)

    def _replayed_step(self, graph_step: StaticCudaGraph, step: int, batch: Batch) -> Losses:
        from pipeline.pytree import flatten

        tensors: list[Tensor] = []
        self._batch_spec = flatten(batch, tensors)
        values = [value.clone() for value in graph_step(*tensors)]
        losses = dict(zip(self._loss_names, values, strict=True))
        self._check_finite(step, losses)
        self.ema.update(step)
        return losses

    def _reset_graph(self) -> None:
        """Capture a step anew, if steps are captured: a graph holds what is not compiled."""
        if self.train.cuda_graph:
            from pipeline.cuda_graph import StaticCudaGraph

            self._graph_step = StaticCudaGraph(
                self._capturable_step, self.device, f"--{self.flag_prefix}.cuda-graph"
            )

    def _eager_step(self, step: int, batch: Batch) -> Losses:
        losses = self._backward(batch)
        if not self.scaler.is_enabled():
            self._check_finite(step, losses)
        else:
            self.nan_guard.add("loss", losses["loss"], step, losses)
        loss_scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self._after_step()
        if self.scaler.get_scale() >= loss_scale:  # it falls when a step is skipped
            self.ema.update(step)
        return losses

    @torch.no_grad()
    def _after_step(self) -> None:
        if self.unsharded is None or type(self.model).after_step is TrainableModule.after_step:
            return self.model.after_step()
        from pipeline.training import fsdp

        with fsdp.gathered(self.loss_module):
            self.model.after_step()

    def _capturable_step(self, *tensors: Tensor) -> list[Tensor]:
        """A whole step in which nothing looks at a value."""
        from pipeline.pytree import unflatten

        self.optimizer.zero_grad(set_to_none=True)
        losses = self._backward(unflatten(self._batch_spec, iter(tensors)))
        self.optimizer.step()
        self._after_step()
        self._loss_names = list(losses)
        return list(losses.values())

    def _backward(self, batch: Batch) -> Losses:
        """Leave the clipped gradient in the weights; give the terms, `loss` and `grad_norm`."""
        batch_size = len(batch)
        parts = min(self.train.grad_accum_steps, batch_size)
        bounds = [batch_size * i // parts for i in range(parts + 1)]
        totals: Losses = {}
        for low, high in pairwise(bounds):
            micro_batch = batch.rows(low, high).to(self.device)
            with autocast(self.device, self.precision):
                losses = self.prepared_loss(micro_batch)
            fraction = (high - low) / batch_size
            total = sum((v for v in losses.values() if v.requires_grad), torch.zeros(()))
            self.accelerator.backward(self.scaler.scale(total * fraction))
            if taken := RESERVED & losses.keys():
                raise ValueError(
                    f"a loss has a term named {', '.join(taken)}, which the trainer computes itself"
                )
            for name, value in ({"loss": total} | losses).items():
                totals[name] = totals.get(name, torch.zeros(())) + value.detach() * fraction
        self.scaler.unscale_(self.optimizer)
        grad_norm = self.accelerator.clip_grad_norm_(
            self.prepared_loss.parameters(), self.train.max_grad_norm
        )
        return totals | {"grad_norm": self.full(grad_norm, self.device)}

    def _check_finite(self, step: int, losses: Losses) -> None:
        self.nan_guard.add("loss", losses["loss"], step, losses)
        self.nan_guard.add("gradient", losses["grad_norm"], step, losses)

    # -- state ------------------------------------------------------------------------------

    def full(self, value: Any, device: str | torch.device = "cpu") -> Any:
        """Gather what FSDP has sharded; every process has to call it."""
        if self.unsharded is None:
            return value
        from pipeline.training import fsdp

        return fsdp.full_tensors(value, device)

    def state_dict(self) -> dict[str, Any]:
        """Give what resuming needs, unsharded; every process has to call it."""
        return {
            "model": self.full(self.model.state_dict()),
            "ema": self.full(self.ema.weights),
            "optimizer": self.full(self.optimizer.state_dict()),
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from `state_dict()`."""
        if self.unsharded is None:
            self.model.load_state_dict(state["model"])
            self.ema.weights = {k: v.to(self.device) for k, v in state["ema"].items()}
            self.optimizer.load_state_dict(state["optimizer"])
        else:
            from pipeline.training import fsdp

            self.model.load_state_dict(fsdp.shard_like(state["model"], self.model.state_dict()))
            self.ema.weights = fsdp.shard_like(state["ema"], self.ema.weights)
            fsdp.load_optimizer(self.optimizer, state["optimizer"])
        for group in self.optimizer.param_groups:  # it may come from a run without a CUDA graph
            group["capturable"] = self._capturable
            rate = float(group["lr"])
            group["lr"] = torch.tensor(rate, device=self.device) if self.train.cuda_graph else rate
        if self.scaler.is_enabled() and state.get("scaler"):
            self.scaler.load_state_dict(state["scaler"])


class Ema:
    """The moving average of the trained weights of `model`, which is validated and handed on."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay = model, decay
        self.weights: dict[str, Tensor] = {
            name: value.detach().clone()
            for name, value in model.named_parameters()
            if value.requires_grad
        }

    def update(self, step: int) -> None:
        """Move towards the weights as they are after step `step`."""
        if not self.decay:
            return
        # a short memory at first, or the random start would weigh on it for long
        decay = min(self.decay, (step + 1) / (step + 10))
        current = dict(self.model.named_parameters())
        # all at once: on a GPU a launch for each takes longer than a captured step
        ema_update = get_ema_multi_avg_fn(decay)
        ema_update([*self.weights.values()], [current[name].data for name in self.weights], 0)

    def state_dict(self) -> dict[str, Tensor]:
        """The model's state with averaged weights, where they are averaged."""
        state = self.model.state_dict()
        return state | self.weights if self.decay else state


class _LossModule(nn.Module):
    """The loss as a forward pass, which is where DDP listens."""

    loss_fn: LossFn
    context: tuple[Any, ...]

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Losses:
        return self.loss_fn(batch, *self.context)
