"""A training run: device, optimizer, schedule, log, pictures, checkpoints, resume.

The batch of step s and its random numbers come from (seed, s) alone, so k + m steps equal k, stop,
resume, m.
"""

from __future__ import annotations

import atexit
import time
from collections.abc import Callable, Iterator, Sized
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from math import isfinite
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

import kernels
from data.batch_sampler import batch_indices
from models.world import Precision, autocast
from pipeline import checkpoint as ckpt
from pipeline.device import data_memory_limit, describe_device, pick_device, pick_precision
from pipeline.lock import lock
from pipeline.training import fsdp
from pipeline.training.device_idle import IdleTimer
from pipeline.training.logger import Logger, log_line
from pipeline.training.nan_guard import Losses, NanGuard
from pipeline.training.shutdown_distributed import shutdown_distributed
from pipeline.training.signals import stop_on_signal
from pipeline.training.train_config import TrainConfig
from pipeline.training.train_step import TrainStep

B = TypeVar("B", covariant=True)
RESUME_KEYS = ("average", "optimizer", "step", "best", "waited", "seconds", "factor")


class BatchDataset(Sized, Protocol[B]):
    """Anything that gives a batch for an array of indices."""

    def batch(self, indices: np.ndarray) -> B: ...


class Cacheable(Protocol):
    """Data that can lie on a GPU."""

    def cache_on_device(self, device: torch.device, memory_limit: int) -> None: ...


class Trainer:
    """One training stage in `folder`, resumed from `last.pt` unless `restart`.

    `model` is what is trained and saved; `objective` gives the named loss terms (model.loss by
    default); the terms that carry a gradient are added up.  `identity` is what the checkpoint says
    of itself: config, latents, actions, parent, clone if it began from one.  `flags` is what the
    flags of `train` begin with.

    Until the first `save` the files of a former training stay as they are.
    """

    def __init__(
        self,
        stage: str,
        folder: Path,
        model: nn.Module,
        train: TrainConfig,
        metadata: dict[str, Any],
        loss_fn: Callable[..., Losses] | None = None,
        restart: bool = False,
        higher_is_better: bool = True,
        data_summary: str = "",
        flag_prefix: str = "train",
    ) -> None:
        self.stage, self.folder, self.train, self.metadata = stage, folder, train, metadata
        self.higher_is_better, self.flag_prefix = higher_is_better, flag_prefix
        self.device = pick_device()
        # autocast is ours: Accelerate holds one precision for the whole process
        self.precision: Precision = pick_precision(self.device, train.precision)
        self.accelerator = Accelerator(cpu=self.device.type == "cpu", mixed_precision="no")
        self.device = self.accelerator.device
        atexit.register(shutdown_distributed)
        if train.batch_size % self.accelerator.num_processes:
            raise ValueError(
                f"a batch of {train.batch_size} does not part evenly among "
                f"{self.accelerator.num_processes} processes; change --{flag_prefix}.batch-size"
            )
        torch.manual_seed(train.seed)
        if self.is_main_process:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = lock(folder)

        last, best = folder / "last.pt", folder / "best.pt"
        if best.exists() and not last.exists() and not restart:
            raise ValueError(
                f"{best} is a finished model, and there is no last.pt beside it to go on from; "
                f"--restart begins anew in its place, another --run keeps it"
            )
        self._started = False  # last.pt is of this training
        self.model = model.to(self.device)
        self.nan_guard = NanGuard(stage, flag_prefix, immediate=self.device.type == "cpu")
        loss: Callable[..., Losses] = loss_fn or model.loss  # type: ignore[assignment]
        self.step_fn = TrainStep(
            model, loss, train, self.accelerator, self.precision, self.nan_guard, flag_prefix
        )
        self.idle_timer = IdleTimer(self.device)

        self.step, self.best, self.bad_validations, self.seconds = 0, None, 0, 0.0
        self.lr_scale = 1.0  # of the learning rate, halved on a plateau
        if last.exists() and not restart:
            self._resume(ckpt.load(last, stage, "cpu" if self.step_fn.unsharded else self.device))
        self.logger = (
            Logger(folder, self.step, train.wandb, flag_prefix) if self.is_main_process else None
        )
        self._last_losses: dict[str, float] = {}
        self._device_idle = 0.0
        self._stop_requested = False
        parameters = sum(p.numel() for p in self.step_fn.trainable) / 1e6
        self.kernels = kernels.describe(self.device)
        self.log_line(
            f"{stage}: {describe_device(self.device)}, {self.precision}, {self.kernels}, "
            f"{self.accelerator.num_processes} process(es), {parameters:.2f} M parameters, {data_summary}"
        )
        if train.sharding == "fsdp" and not self.step_fn.unsharded:
            self.log_line(
                f"{stage}: --{flag_prefix}.sharding fsdp has no effect in one process; use torchrun"
            )
        if train.cuda_graph and self.device.type != "cuda":
            self.log_line(f"{stage}: --{flag_prefix}.graph has no effect without a CUDA GPU")
        if self.step:
            self.log_line(f"{stage}: goes on from step {self.step} of {train.steps} ({last})")

    @property
    def is_main_process(self) -> bool:
        return self.accelerator.is_main_process

    @property
    def finished(self) -> bool:
        stalled = self.train.patience and self.bad_validations >= self.train.patience
        return self.step >= self.train.steps or bool(stalled)

    def log_line(self, line: str) -> None:
        log_line(self.accelerator, line)

    def log_finished(self) -> None:
        best = self.folder / "best.pt"
        status = best if best.exists() else f"but {best} is gone"
        self.log_line(
            f"{self.stage}: all {self.step} steps are done ({status}); "
            f"--restart begins anew, --{self.flag_prefix}.steps goes further"
        )

    def main_process_first(self) -> AbstractContextManager[None]:
        """Let the main process do first what leaves files that the others then find."""
        return self.accelerator.main_process_first()

    def cache_on_device(self, dataset: Cacheable) -> None:
        """Let training data lie on a GPU where it fits there, and no other process loads it."""
        if self.device.type == "cuda" and not self.train.num_workers:
            dataset.cache_on_device(self.device, data_memory_limit(self.device))

    # -- the loop ---------------------------------------------------------------------------

    def batches(self, dataset: BatchDataset[B]) -> Iterator[tuple[int, B]]:
        """Give (step, batch) until the run is done; a signal saves and ends it with
        KeyboardInterrupt.  Under several processes each gets its share of the batch."""
        if self.finished:
            return self.log_finished()
        loader = DataLoader(
            _StepDataset(dataset, self.train, self.accelerator),
            batch_size=None,
            sampler=range(self.step, self.train.steps),  # type: ignore[arg-type]
            num_workers=self.train.num_workers,
            persistent_workers=False,
            multiprocessing_context="spawn" if self.train.num_workers else None,
        )
        progress_bar = tqdm(
            total=self.train.steps,
            initial=self.step,
            desc=self.stage,
            disable=not self.is_main_process,
        )
        started = time.monotonic()
        with stop_on_signal(self._request_stop), progress_bar:
            for batch in self.idle_timer.time_batches(loader):
                torch.manual_seed(hash_seed(self.train.seed, self.step))
                yield self.step, batch
                self.seconds += time.monotonic() - started
                started = time.monotonic()
                progress_bar.update()
                postfix = {k: f"{v:.3g}" for k, v in list(self._last_losses.items())[:3]}
                progress_bar.set_postfix(postfix | {"idle": f"{self._device_idle:.0%}"})
                if self._should_stop():
                    self.save()
                    raise KeyboardInterrupt
                if self.step % self.train.save_every == 0 or self.finished:
                    self.save()
                if self.finished:
                    break
        if self.train.patience and self.bad_validations >= self.train.patience:
            self.log_line(
                f"{self.stage}: stopped early, {self.bad_validations} validations without a better one"
            )

    def train_step(self, *tensors: Tensor | None) -> Losses:
        """Take one optimizer step on `objective(*tensors)`; the first axis is the batch."""
        with self.idle_timer.busy():
            losses = self.step_fn.train_step(self.step, self._learning_rate(), tensors)
        grad_norm = losses.pop("grad_norm")
        self.step += 1
        if self.step % self.train.log_every == 0 or self.step == 1:
            self.nan_guard.check()
            self._last_losses = {k: float(v) for k, v in losses.items()}
            self._device_idle = self.idle_timer.fraction()
            extra = {
                "grad_norm": float(grad_norm),
                "learning_rate": self._learning_rate(self.step - 1),
                "idle": self._device_idle,
            }
            if self.step_fn.scaler.is_enabled():
                extra["loss_scale"] = self.step_fn.scaler.get_scale()
            if not isfinite(extra["grad_norm"]):
                del extra["grad_norm"]  # a step that was left out; JSON has no infinity
            if self.logger:
                self.logger.write(self.step, self._last_losses | extra)
        return losses

    def every(self, interval: int) -> bool:
        """True after each `every` steps, and at the end."""
        return self.step % interval == 0 or self.step == self.train.steps

    def save_best(self, value: float, metrics: dict[str, float]) -> None:
        """Log a validation; write best.pt when `value` is the best so far."""
        self.nan_guard.check()
        value = self._broadcast(float(value))
        sign = 1 if self.higher_is_better else -1
        improved = self.best is None or sign * value > sign * self.best
        if improved:
            self.best, self.bad_validations = value, 0
        else:
            self.bad_validations += 1
            if self.train.schedule == "plateau":
                self.lr_scale /= 2
        if not self._started:  # never a best.pt without the last.pt that goes on from there
            self.save()
        weights = fsdp.mixture(self.ema_weights()) if improved else {}
        if not self.is_main_process or self.logger is None:
            return
        self.logger.write(self.step, {f"validation/{k}": v for k, v in metrics.items()})
        line = ", ".join(f"{k} {v:.4g}" for k, v in metrics.items())
        self.log_line(f"{self.stage} step {self.step}: {line}{' (best)' if improved else ''}")
        if improved:
            ckpt.save(self.folder / "best.pt", self._build_checkpoint(weights))

    @contextmanager
    def ema_model(self) -> Iterator[nn.Module]:
        """The model with its averaged weights, in eval mode, without gradients."""
        self.nan_guard.check()
        unsharded = self.step_fn.unsharded
        if unsharded is not None:
            unsharded.load_state_dict(fsdp.mixture(self.ema_weights()))
            with torch.no_grad(), autocast(self.device, self.precision):
                yield unsharded.to(self.device).eval()
            unsharded.cpu()
            return
        raw_weights = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        self.model.load_state_dict(self.ema_weights())
        self.model.eval()
        try:
            with torch.no_grad(), autocast(self.device, self.precision):
                yield self.model
        finally:
            self.model.load_state_dict(raw_weights)
            self.model.train()

    def log_image(self, name: str, image: np.ndarray) -> None:
        """Keep an (H, W, 3) uint8 picture of this step: a PNG, and in TensorBoard."""
        if self.logger:
            self.logger.write_image(self.step, name, image)

    # -- state ------------------------------------------------------------------------------

    def ema_weights(self) -> dict[str, Tensor]:
        return self.step_fn.ema.weights if self.train.ema_decay else self.model.state_dict()

    def save(self) -> None:
        """Write last.pt, whole or not at all; every process has to call it."""
        self.nan_guard.check()
        state = self.step_fn.state_dict()
        last = self.folder / "last.pt"
        if self.is_main_process:
            checkpoint = self._build_checkpoint(state["model"]) | state
            checkpoint |= {"waited": self.bad_validations, "factor": self.lr_scale}
            target = last if self._started else self.folder / "first.pt"
            ckpt.save(target, checkpoint)
            if not self._started:  # it is on the disk: now the files of a former training may go
                (self.folder / "best.pt").unlink(missing_ok=True)
                target.replace(last)
        self._started, self.nan_guard.last_checkpoint = True, last

    def _build_checkpoint(self, weights: dict[str, Tensor]) -> ckpt.Checkpoint:
        return {
            "format": ckpt.FORMAT,
            "stage": self.stage,
            **self.metadata,
            "train": asdict(self.train),
            "model": weights,
            "fingerprint": ckpt.fingerprint(weights, self.metadata["config"]),
            "step": self.step,
            "best": self.best,
            "seconds": self.seconds,
            "kernels": self.kernels,
            "versions": {"torch": str(torch.__version__), "numpy": np.__version__},
        }

    def _resume(self, last: ckpt.Checkpoint) -> None:
        path = self.folder / "last.pt"
        missing = ", ".join(key for key in RESUME_KEYS if key not in last)
        if missing:
            raise ValueError(
                f"{path} holds no {missing}, so there is nothing to go on from (a copy of a "
                f"best.pt?); --restart begins anew"
            )
        for key, value in self.metadata["config"].items():
            if _fixed_settings(last["config"].get(key)) != _fixed_settings(value):
                raise ValueError(
                    f"{path} was begun with {key} = {last['config'].get(key)}, but now it is "
                    f"{value}; --restart begins anew, another --run keeps both"
                )
        for key in ("parent", "clone"):  # a clone is only beneath an actor-critic
            current = self.metadata.get(key)
            if current is None:
                continue
            stored = last.get(key, current)  # older ones do not say what they were cloned from
            if current["fingerprint"] != stored["fingerprint"]:
                raise ValueError(
                    f"{path} was begun on {stored['path']} with fingerprint "
                    f"{stored['fingerprint']}, but now it is {current['fingerprint']}; --restart begins "
                    f"anew"
                )
        self.step_fn.load_state_dict(last)
        self._started, self.nan_guard.last_checkpoint = True, path
        self.step, self.bad_validations = last["step"], last["waited"]
        # without best.pt, ended before its first was written, the next is the best
        self.best = last["best"] if (self.folder / "best.pt").exists() else None
        self.seconds, self.lr_scale = last["seconds"], last["factor"]

    def _learning_rate(self, step: int | None = None) -> float:
        """Of a step; the next one if none is given."""
        train, current_step = self.train, self.step if step is None else step
        warmup = min(1.0, (current_step + 1) / max(1, train.warmup_steps))
        decay = 1.0
        if train.schedule == "cosine":
            progress = current_step / max(1, train.steps)
            decay = 0.02 + 0.98 * (1 + np.cos(np.pi * min(1.0, progress))) / 2
        return float(train.learning_rate * warmup * decay * self.lr_scale)

    def _broadcast(self, value: float) -> float:
        """What the main process holds: a branch on it is then the same for all."""
        if self.accelerator.num_processes == 1:
            return value
        tensor = torch.tensor([value], device=self.device, dtype=torch.float64)
        return float(broadcast(tensor))  # type: ignore[arg-type]

    def _request_stop(self) -> None:
        """Stop after this step; asked again, stop at once."""
        if self._stop_requested:
            raise KeyboardInterrupt
        self._stop_requested = True

    def _should_stop(self) -> bool:
        if self.accelerator.num_processes == 1:
            return self._stop_requested
        flag = torch.tensor([float(self._stop_requested)], device=self.device)
        return bool(self.accelerator.reduce(flag, "sum").item() > 0)  # type: ignore[union-attr]


class _StepDataset(Dataset[Any]):
    """Item s is the batch of step s, or this process's rows of it."""

    def __init__(
        self, dataset: BatchDataset[Any], train: TrainConfig, accelerator: Accelerator
    ) -> None:
        self.dataset, self.train = dataset, train
        self.rank, self.world_size = accelerator.process_index, accelerator.num_processes

    def __getitem__(self, step: int) -> Any:
        train = self.train
        order = batch_indices(len(self.dataset), train.batch_size, step, train.seed)
        return self.dataset.batch(order[self.rank :: self.world_size])


def _fixed_settings(value: Any) -> Any:
    """A setting without what may change at a resume, because it changes no result."""
    if not isinstance(value, dict):
        return value
    return {k: _fixed_settings(v) for k, v in value.items() if k != "recompute"}


def hash_seed(*numbers: int) -> int:
    """Mix integers into a seed."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
