"""A training run: device, optimizer, schedule, log, pictures, checkpoints, resume.

The batch of step s and its random numbers come from (seed, s) alone, so k + m steps equal k, stop,
resume, m.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sized
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from math import isfinite
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from data.order import batch_order
from models.world import Arithmetic, arithmetic
from pipeline import checkpoint as ckpt
from pipeline import sharding
from pipeline.average import Average
from pipeline.device import Precision, describe_device, pick_device, pick_precision
from pipeline.finite import Finite, Losses
from pipeline.lock import lock
from pipeline.log import Log
from pipeline.signals import asked_to_stop

B = TypeVar("B", covariant=True)


class Batches(Sized, Protocol[B]):
    """Anything that gives a batch for an array of indices."""

    def batch(self, indices: np.ndarray) -> B: ...


@dataclass(frozen=True)
class TrainConfig:
    steps: int = 1000
    """Optimizer steps in all, those before a resume included."""
    batch_size: int = 32
    """Clips (or frames) a step, over all processes."""
    accumulate: int = 1
    """Parts that a batch is cut into, to fit the memory; the step is the same."""
    learning_rate: float = 1e-3
    """Peak learning rate of AdamW."""
    warmup: int = 50
    """Steps of linear warm-up."""
    schedule: Literal["cosine", "plateau", "constant"] = "cosine"
    """After the warm-up: cosine to a fiftieth, halved when validation stalls, or constant."""
    weight_decay: float = 0.01
    beta2: float = 0.95
    clip: float = 1.0
    """Largest norm of the gradient."""
    average: float = 0.99
    """Decay of the moving average of the weights that is validated and handed on; 0 is none."""
    patience: int = 0
    """Stop after this many validations without a better one; 0 never."""
    evaluate_every: int = 200
    """Steps between validations."""
    save_every: int = 100
    """Steps between checkpoints; a signal saves at once."""
    report_every: int = 20
    """Steps between lines of the log."""
    precision: Precision = "auto"
    """bf16, fp16 (with a loss scaler) or fp32 arithmetic; auto takes bf16 where the hardware has
    it."""
    sharding: Literal["none", "fsdp"] = "none"
    """Spread weights, gradients and optimizer state over the processes (FSDP)."""
    workers: int = 0
    """Processes that load batches; the batches do not depend on it."""
    seed: int = 0
    wandb: bool = False
    """Log to Weights & Biases too (pip install wandb)."""


class Run:
    """One training stage in `folder`, resumed from `last.pt` unless `restart`.

    `model` is what is trained and saved; `objective` gives the named loss terms (model.loss by
    default); the terms that carry a gradient are added up.  `identity` is what the checkpoint says
    of itself: config, latents, actions, parent.
    """

    def __init__(
        self,
        stage: str,
        folder: Path,
        model: nn.Module,
        train: TrainConfig,
        identity: dict[str, Any],
        objective: Callable[..., Losses] | None = None,
        restart: bool = False,
        higher_is_better: bool = True,
        data: str = "",
    ) -> None:
        self.stage, self.folder, self.train, self.identity = stage, folder, train, identity
        self.higher_is_better = higher_is_better
        self.device = pick_device()
        # autocast is ours: Accelerate holds one precision for the whole process
        self.precision: Arithmetic = pick_precision(self.device, train.precision)
        self.accelerator = Accelerator(cpu=self.device.type == "cpu", mixed_precision="no")
        self.device = self.accelerator.device
        if train.batch_size % self.accelerator.num_processes:
            raise ValueError(
                f"a batch of {train.batch_size} does not part evenly among "
                f"{self.accelerator.num_processes} processes; change --train.batch-size"
            )
        torch.manual_seed(train.seed)
        if self.is_main:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = lock(folder)

        last = folder / "last.pt"
        self.model = model.to(self.device)
        self.objective = _Objective(model, objective or model.loss)  # type: ignore[arg-type]
        self.twin: nn.Module | None = None  # of a sharded model: whole, for validation
        if train.sharding == "fsdp" and self.accelerator.num_processes > 1:
            self.twin = copy.deepcopy(model).cpu()
            sharding.shard(self.objective, self.device)
        trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            trained,
            lr=train.learning_rate,
            betas=(0.9, train.beta2),
            weight_decay=train.weight_decay,
            fused=self.device.type == "cuda" or None,
        )
        self.optimizer = self.accelerator.prepare(self.optimizer)
        self.wrapped = self.objective if self.twin else self.accelerator.prepare(self.objective)
        # fp16 ends at 65504 and at 6e-8: losses are scaled up, what overflows then is left out
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        self.finite = Finite(stage, last, at_once=self.device.type == "cpu")
        self.average = Average(model, train.average)

        self.step, self.best, self.waited, self.seconds = 0, None, 0, 0.0
        self.factor = 1.0  # of the learning rate, halved on a plateau
        if last.exists() and not restart:
            self._resume(ckpt.load(last, stage, "cpu" if self.twin else self.device))
        elif self.is_main:
            for old in ("best.pt", "last.pt"):
                (folder / old).unlink(missing_ok=True)
        self.log = Log(folder, self.step, train.wandb) if self.is_main else None
        self._recent: dict[str, float] = {}
        self._stop = False
        parameters = sum(p.numel() for p in trained) / 1e6
        self.say(
            f"{stage}: {describe_device(self.device)}, {self.precision}, "
            f"{self.accelerator.num_processes} process(es), {parameters:.2f} M parameters, {data}"
        )
        if train.sharding == "fsdp" and not self.twin:
            self.say(f"{stage}: --train.sharding fsdp has no effect in one process; use torchrun")
        if self.step:
            self.say(f"{stage}: goes on from step {self.step} of {train.steps} ({last})")

    @property
    def is_main(self) -> bool:
        return self.accelerator.is_main_process

    @property
    def done(self) -> bool:
        stalled = self.train.patience and self.waited >= self.train.patience
        return self.step >= self.train.steps or bool(stalled)

    def say(self, line: str) -> None:
        if self.is_main:
            tqdm.write(line)

    def say_done(self) -> None:
        self.say(
            f"{self.stage}: all {self.step} steps are done ({self.folder / 'best.pt'}); "
            f"--restart begins anew, --train.steps goes further"
        )

    def first_on_main(self) -> AbstractContextManager[None]:
        """Let the main process do first what leaves files that the others then find."""
        return self.accelerator.main_process_first()

    # -- the loop ---------------------------------------------------------------------------

    def batches(self, clips: Batches[B]) -> Iterator[tuple[int, B]]:
        """Give (step, batch) until the run is done; a signal saves and ends it with
        KeyboardInterrupt.  Under several processes each gets its share of the batch."""
        if self.done:
            return self.say_done()
        loader = DataLoader(
            _Steps(clips, self.train, self.accelerator),
            batch_size=None,
            sampler=range(self.step, self.train.steps),  # type: ignore[arg-type]
            num_workers=self.train.workers,
            persistent_workers=False,
            multiprocessing_context="spawn" if self.train.workers else None,
        )
        bar = tqdm(
            total=self.train.steps, initial=self.step, desc=self.stage, disable=not self.is_main
        )
        started = time.monotonic()
        with asked_to_stop(self._ask), bar:
            for batch in loader:
                torch.manual_seed(hash_seed(self.train.seed, self.step))
                yield self.step, batch
                self.seconds += time.monotonic() - started
                started = time.monotonic()
                bar.update()
                bar.set_postfix({k: f"{v:.3g}" for k, v in list(self._recent.items())[:3]})
                if self._everyone_stops():
                    self.save()
                    raise KeyboardInterrupt
                if self.step % self.train.save_every == 0 or self.done:
                    self.save()
                if self.done:
                    break
        if self.train.patience and self.waited >= self.train.patience:
            self.say(f"{self.stage}: stopped early, {self.waited} validations without a better one")

    def descend(self, *tensors: Tensor | None) -> Losses:
        """Take one optimizer step on `objective(*tensors)`; the first axis is the batch."""
        self.model.train()
        self._set_learning_rate()
        first = next(t for t in tensors if t is not None)
        rows = len(first)
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
            self.finite.expect("loss", total, self.step, losses)
            self.accelerator.backward(self.scaler.scale(total * share))
            for name, value in losses.items():
                totals[name] = totals.get(name, torch.zeros(())) + value.detach() * share
        norm = self._step_optimizer(totals)
        self.step += 1
        if self.step % self.train.report_every == 0 or self.step == 1:
            self.finite.check()
            self._recent = {k: float(v) for k, v in totals.items()}
            extra = {"grad_norm": float(norm), "learning_rate": self._learning_rate()}
            if self.scaler.is_enabled():
                extra["loss_scale"] = self.scaler.get_scale()
            if not isfinite(extra["grad_norm"]):
                del extra["grad_norm"]  # a step that was left out; JSON has no infinity
            if self.log:
                self.log.write(self.step, self._recent | extra)
        return totals

    def _step_optimizer(self, terms: Losses) -> Tensor:
        """Descend by the gradient, unless fp16 has made it infinite; give its norm."""
        self.scaler.unscale_(self.optimizer)
        norm = self.accelerator.clip_grad_norm_(self.wrapped.parameters(), self.train.clip)
        norm = sharding.whole(norm, self.device)
        if not self.scaler.is_enabled():
            self.finite.expect("gradient", norm, self.step, terms)
        scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.scaler.get_scale() >= scale:  # it falls when a step is left out
            self.average.follow(self.step)
        return norm

    def due(self, every: int) -> bool:
        """True after each `every` steps, and at the end."""
        return self.step % every == 0 or self.step == self.train.steps

    def keep_best(self, value: float, figures: dict[str, float]) -> None:
        """Log a validation; write best.pt when `value` is the best so far."""
        self.finite.check()
        value = self._of_main(float(value))
        sign = 1 if self.higher_is_better else -1
        better = self.best is None or sign * value > sign * self.best
        if better:
            self.best, self.waited = value, 0
        else:
            self.waited += 1
            if self.train.schedule == "plateau":
                self.factor /= 2
        weights = sharding.whole(self.averaged_weights()) if better else {}
        if not self.is_main or self.log is None:
            return
        self.log.write(self.step, {f"validation/{k}": v for k, v in figures.items()})
        line = ", ".join(f"{k} {v:.4g}" for k, v in figures.items())
        self.say(f"{self.stage} step {self.step}: {line}{' (best)' if better else ''}")
        if better:
            ckpt.save(self.folder / "best.pt", self._described(weights))

    @contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        """The model with its averaged weights, in eval mode, without gradients."""
        self.finite.check()
        if self.twin:
            self.twin.load_state_dict(sharding.whole(self.averaged_weights()))
            with torch.no_grad(), arithmetic(self.device, self.precision):
                yield self.twin.to(self.device).eval()
            self.twin.cpu()
            return
        own = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        self.model.load_state_dict(self.averaged_weights())
        self.model.eval()
        try:
            with torch.no_grad(), arithmetic(self.device, self.precision):
                yield self.model
        finally:
            self.model.load_state_dict(own)
            self.model.train()

    def picture(self, name: str, pixels: np.ndarray) -> None:
        """Keep an (H, W, 3) uint8 picture of this step: a PNG, and in TensorBoard."""
        if self.log:
            self.log.picture(self.step, name, pixels)

    # -- state ------------------------------------------------------------------------------

    def averaged_weights(self) -> dict[str, Tensor]:
        return self.average.weights if self.train.average else self.model.state_dict()

    def save(self) -> None:
        """Write last.pt, whole or not at all; every process has to call it."""
        self.finite.check()
        weights = sharding.whole(self.model.state_dict())
        average = sharding.whole(self.average.weights)
        optimizer = sharding.whole(self.optimizer.state_dict())
        if not self.is_main:
            return
        checkpoint = self._described(weights)
        checkpoint |= {
            "average": average,
            "optimizer": optimizer,
            "scaler": self.scaler.state_dict(),
            "waited": self.waited,
            "factor": self.factor,
        }
        ckpt.save(self.folder / "last.pt", checkpoint)

    def _described(self, weights: dict[str, Tensor]) -> ckpt.Checkpoint:
        return {
            "format": ckpt.FORMAT,
            "stage": self.stage,
            **self.identity,
            "train": asdict(self.train),
            "model": weights,
            "fingerprint": ckpt.fingerprint(weights, self.identity["config"]),
            "step": self.step,
            "best": self.best,
            "seconds": self.seconds,
            "versions": {"torch": str(torch.__version__), "numpy": np.__version__},
        }

    def _resume(self, last: ckpt.Checkpoint) -> None:
        where = self.folder / "last.pt"
        for key, value in self.identity["config"].items():
            if _lasting(last["config"].get(key)) != _lasting(value):
                raise ValueError(
                    f"{where} was begun with {key} = {last['config'].get(key)}, but now it is "
                    f"{value}; --restart begins anew, another --run keeps both"
                )
        parent, known = self.identity["parent"], last["parent"]
        if parent["fingerprint"] != known["fingerprint"]:
            raise ValueError(
                f"{where} was begun on {known['path']} with fingerprint {known['fingerprint']}, "
                f"but now it is {parent['fingerprint']}; --restart begins anew"
            )
        self.model.load_state_dict(sharding.parted(last["model"], self.model.state_dict()))
        self.average.weights = sharding.parted(last["average"], self.average.weights)
        sharding.load_optimizer(self.optimizer, last["optimizer"])
        if self.scaler.is_enabled() and last.get("scaler"):
            self.scaler.load_state_dict(last["scaler"])
        self.step, self.best, self.waited = last["step"], last["best"], last["waited"]
        self.seconds, self.factor = last["seconds"], last["factor"]

    def _learning_rate(self) -> float:
        return self.optimizer.param_groups[0]["lr"]

    def _set_learning_rate(self) -> None:
        train = self.train
        rise = min(1.0, (self.step + 1) / max(1, train.warmup))
        fall = 1.0
        if train.schedule == "cosine":
            through = self.step / max(1, train.steps)
            fall = 0.02 + 0.98 * (1 + np.cos(np.pi * min(1.0, through))) / 2
        for group in self.optimizer.param_groups:
            group["lr"] = float(train.learning_rate * rise * fall * self.factor)

    def _of_main(self, value: float) -> float:
        """What the main process holds: a branch on it is then the same for all."""
        if self.accelerator.num_processes == 1:
            return value
        told = torch.tensor([value], device=self.device, dtype=torch.float64)
        return float(broadcast(told))  # type: ignore[arg-type]

    def _ask(self) -> None:
        """Stop after this step; asked again, stop at once."""
        if self._stop:
            raise KeyboardInterrupt
        self._stop = True

    def _everyone_stops(self) -> bool:
        if self.accelerator.num_processes == 1:
            return self._stop
        flag = torch.tensor([float(self._stop)], device=self.device)
        return bool(self.accelerator.reduce(flag, "sum").item() > 0)  # type: ignore[union-attr]


class _Objective(nn.Module):
    """The loss as a forward pass, which is where DDP listens."""

    def __init__(self, model: nn.Module, function: Callable[..., Losses]) -> None:
        super().__init__()
        self.model = model
        self.function = function

    def forward(self, *tensors: Tensor | None) -> Losses:
        return self.function(*tensors)


class _Steps(Dataset[Any]):
    """Item s is the batch of step s, or this process's rows of it."""

    def __init__(self, clips: Batches[Any], train: TrainConfig, accelerator: Accelerator) -> None:
        self.clips, self.train = clips, train
        self.rank, self.ranks = accelerator.process_index, accelerator.num_processes

    def __getitem__(self, step: int) -> Any:
        train = self.train
        order = batch_order(len(self.clips), train.batch_size, step, train.seed)
        return self.clips.batch(order[self.rank :: self.ranks])


def _lasting(value: Any) -> Any:
    """A setting without what may change at a resume, because it changes no result."""
    if not isinstance(value, dict):
        return value
    return {k: _lasting(v) for k, v in value.items() if k != "recompute"}


def hash_seed(*numbers: int) -> int:
    """Mix integers into a seed."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
