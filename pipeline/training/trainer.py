"""A training run: device, optimizer, schedule, log, images, checkpoints, resume.

The batch of step s and its random numbers come from (seed, s) alone, so k + m steps equal k, stop,
resume, m.
"""

from __future__ import annotations

import atexit
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from math import isfinite
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor
from tqdm import tqdm

import kernels
from data.batch import Batch
from data.io.files import lock
from data.io.messages import first_few, one_line
from models.layers.precision import Precision, autocast
from models.method import Best, Losses, TrainableModule
from pipeline import checkpoint as ckpt
from pipeline.batches.step_dataset import BatchDataset, StepDataset, hash_seed, load_batches
from pipeline.device import data_memory_limit, describe_device, pick_device, pick_precision
from pipeline.training.device_idle import IdleTimer
from pipeline.training.logger import Logger, log_line
from pipeline.training.nan_guard import NanGuard
from pipeline.training.stop_on_signal import stop_on_signal
from pipeline.training.train_config import TrainConfig
from pipeline.training.train_step import LossFn, TrainStep

M = TypeVar("M", bound=TrainableModule)


class Cacheable(Protocol):
    """Data that can lie on a GPU."""

    def cache_on_device(self, device: torch.device, memory_limit: int) -> None: ...


class Trainer(Generic[M]):
    """One training stage in `folder`, resumed from `last.pt` unless `restart`.

    `model` is what is trained and saved.  `metadata` is what the checkpoint says of itself: config,
    latents, actions, parent, and what else the stage knows.  `best` chooses best.pt; by default it
    is the model's own.  `flag_prefix` is what the flags of `train` begin with.

    Until the first `save` the files of a former training stay as they are.
    """

    def __init__(
        self,
        stage: str,
        folder: Path,
        model: M,
        train: TrainConfig,
        metadata: dict[str, Any],
        restart: bool = False,
        best: Best | None = None,
        data_summary: str = "",
        flag_prefix: str = "train",
    ) -> None:
        self.stage, self.folder, self.train = stage, folder, train
        self.metadata: dict[str, Any] = metadata
        self.best_by, self.flag_prefix = best or model.best, flag_prefix
        self.device = pick_device()
        # autocast is ours: Accelerate holds one precision for the whole process
        self.precision: Precision = pick_precision(self.device, train.precision)
        self.accelerator = Accelerator(cpu=self.device.type == "cpu", mixed_precision="no")
        self.device = self.accelerator.device
        if self.accelerator.num_processes > 1:
            from pipeline.training.distributed import shutdown_distributed

            atexit.register(shutdown_distributed)
        if train.batch_size % self.accelerator.num_processes:
            raise ValueError(
                f"a batch of {train.batch_size} is not divisible by the "
                f"{self.accelerator.num_processes} processes; change --{flag_prefix}.batch-size"
            )
        torch.manual_seed(train.seed)
        if self.is_main_process:
            self._lock = lock(folder)  # made where it is not there yet

        last, best_path = folder / "last.pt", folder / "best.pt"
        if best_path.exists() and not last.exists() and not restart:
            raise ValueError(
                f"{best_path} is a finished model, and there is no last.pt next to it to resume "
                f"from; --restart starts over in its place, another --run keeps it"
            )
        resuming = last.exists() and not restart
        self._started = False  # last.pt is of this training
        if train.init_from or train.freeze:
            from pipeline.training.init_from import begin

            lines, recordings = begin(model, train, folder, stage, resuming, flag_prefix, metadata)
            self.log_line("\n".join(lines))
            self.metadata = metadata | {"recordings": recordings}
        if not resuming and (remarks := model.remarks()):
            self.log_line("\n".join(remarks))
        self.model = model.to(self.device)
        self.nan_guard = NanGuard(stage, flag_prefix, immediate=self.device.type == "cpu")
        self.step_fn = TrainStep(
            model, train, self.accelerator, self.precision, self.nan_guard, flag_prefix
        )
        self.idle_timer = IdleTimer(self.device)

        self.global_step, self.bad_validations, self.seconds = 0, 0, 0.0
        self.best: float | None = None
        self.lr_scale = 1.0  # of the learning rate, halved on a plateau
        if resuming:
            self._resume(last)
        self.logger: Logger | None = None
        if self.is_main_process:
            self.logger = Logger(folder, self.global_step, train.wandb, flag_prefix)
        self._last_losses: dict[str, float] = {}
        self._device_idle, self._stop_requested, self._looked_at_data = 0.0, False, False
        self.parameters = sum(p.numel() for p in self.step_fn.trainable)
        self.kernels = kernels.describe(self.device)
        self.log_line(
            f"{stage}: {describe_device(self.device)}, {self.precision}, {self.kernels}, "
            f"{self.accelerator.num_processes} process(es), "
            f"{self.parameters / 1e6:.2f} M parameters, {data_summary}"
        )
        if train.sharding == "fsdp" and not self.step_fn.unsharded:
            self.log_line(
                f"{stage}: --{flag_prefix}.sharding fsdp has no effect in one process; use torchrun"
            )
        if train.cuda_graph and self.device.type != "cuda":
            self.log_line(f"{stage}: --{flag_prefix}.cuda-graph has no effect without a CUDA GPU")
        if self.global_step:
            steps = self.train.steps
            self.log_line(f"{stage}: resuming from step {self.global_step} of {steps} ({last})")

    @property
    def is_main_process(self) -> bool:
        return self.accelerator.is_main_process

    @property
    def finished(self) -> bool:
        stalled = self.train.patience and self.bad_validations >= self.train.patience
        return self.global_step >= self.train.steps or bool(stalled)

    def log_line(self, line: str) -> None:
        log_line(self.accelerator, line)

    def log_finished(self) -> None:
        best = self.folder / "best.pt"
        status = best if best.exists() else f"but {best} is not there"
        self.log_line(
            f"{self.stage}: finished, {self.global_step} steps ({status}); "
            f"--restart starts over, --{self.flag_prefix}.steps trains longer"
        )

    def main_process_first(self) -> AbstractContextManager[None]:
        """Let the main process do first what leaves files that the others then find."""
        return self.accelerator.main_process_first()

    def cache_on_device(self, dataset: Cacheable) -> None:
        """Let training data lie on a GPU where it fits there, and no other process loads it."""
        if self.device.type == "cuda" and not self.train.num_workers:
            dataset.cache_on_device(self.device, data_memory_limit(self.device))

    # -- the loop ---------------------------------------------------------------------------

    def batches(self, dataset: BatchDataset) -> Iterator[Batch]:
        """Give batches until the run is finished; a signal saves and ends it with
        KeyboardInterrupt.  Under several processes each gets its share of the batch."""
        if self.finished:
            return self.log_finished()
        steps = range(self.global_step, self.train.steps)
        batches = load_batches(
            StepDataset(dataset, self.train.batch_size, self.train.seed, self.accelerator),
            steps,
            self.train.num_workers,
            f"--{self.flag_prefix}.num-workers",
        )
        silent = not self.is_main_process
        progress_bar = tqdm(total=steps.stop, initial=steps.start, desc=self.stage, disable=silent)
        started = time.monotonic()
        with stop_on_signal(self._request_stop), progress_bar:
            for batch in self.idle_timer.time_batches(batches):
                torch.manual_seed(hash_seed(self.train.seed, self.global_step))
                yield batch
                self.seconds += time.monotonic() - started
                started = time.monotonic()
                shown = {k: f"{v:.3g}" for k, v in list(self._last_losses.items())[:3]}
                progress_bar.set_postfix(shown, idle=f"{self._device_idle:.0%}", refresh=False)
                progress_bar.update()
                if self._should_stop():
                    self.save()
                    raise KeyboardInterrupt
                if self.global_step % self.train.save_every == 0 or self.finished:
                    self.save()
                if self.finished:
                    break
        if self.train.patience and self.bad_validations >= self.train.patience:
            self.log_line(
                f"{self.stage}: stopped early, {self.bad_validations} validations were no better"
            )
        if self.best is None and self.bad_validations:
            raise ValueError(
                f"{self.stage}: no validation gave a finite {self.best_by.metric}, so there is no "
                f"best.pt; start over with --restart and a lower --{self.flag_prefix}.learning-rate"
            )

    def step(self, loss_fn: LossFn, batch: Batch, *context: Any) -> Losses:
        """Take one optimizer step on the sum of loss_fn(batch, *context), then `after_step`.

        Gives the named terms, and their sum as `loss`.
        """
        if not self._looked_at_data:
            self.nan_guard.check_batch(batch, ckpt.run_of(self.stage, self.folder / "best.pt"))
            self._looked_at_data = True
        rate = self.lr_scale * self.train.learning_rate_at(self.global_step, self.model.turns)
        with self.idle_timer.busy():
            losses = self.step_fn(self.global_step, rate, loss_fn, batch, *context)
        grad_norm = losses.pop("grad_norm")
        self.global_step += 1
        if self.global_step % self.train.log_every == 0 or self.global_step == 1:
            self.nan_guard.check()
            self._last_losses = {k: float(v) for k, v in losses.items()}
            self._device_idle = self.idle_timer.fraction()
            for line in self.model.advise(self._last_losses):
                self.log_line(line)
            metrics = self._last_losses | {
                "grad_norm": float(grad_norm),
                "learning_rate": rate,
                "device_idle": self._device_idle,
            }
            if self.step_fn.scaler.is_enabled():
                metrics["loss_scale"] = self.step_fn.scaler.get_scale()
            if not isfinite(metrics["grad_norm"]):
                del metrics["grad_norm"]  # a step that was skipped; JSON has no infinity
            if self.logger:
                self.logger.write(self.global_step, {f"train/{k}": v for k, v in metrics.items()})
        return losses

    def every(self, interval: int) -> bool:
        """True after each `interval` steps, and at the end."""
        return self.global_step % interval == 0 or self.global_step == self.train.steps

    def save_best(self, metrics: dict[str, float]) -> None:
        """Log a validation; write best.pt when `best.metric` is the best so far."""
        self.nan_guard.check()
        if self.best_by.metric not in metrics:
            raise ValueError(
                f"the {self.stage} is chosen by {self.best_by.metric}, but its validation gives "
                f"{first_few(metrics)}"
            )
        value = self._broadcast(float(metrics[self.best_by.metric]))
        sign = 1 if self.best_by.higher_is_better else -1
        improved = isfinite(value) and (self.best is None or sign * value > sign * self.best)
        if improved:
            self.best, self.bad_validations = value, 0
        else:
            self.bad_validations += 1
            if self.train.schedule == "plateau":
                self.lr_scale /= 2
        if not self._started:  # never a best.pt without the last.pt to resume from
            self.save()
        weights = self.step_fn.full(self.step_fn.ema.state_dict()) if improved else {}
        if not self.is_main_process or self.logger is None:
            return
        self.logger.write(self.global_step, {f"validation/{k}": v for k, v in metrics.items()})
        line = ", ".join(f"{k} {v:.4g}" for k, v in metrics.items())
        mark = " (best)" if improved else "" if isfinite(value) else " (not finite, not kept)"
        self.log_line(f"{self.stage} step {self.global_step}: {line}{mark}")
        if improved:
            self.nan_guard.check_weights(weights, self.global_step)
            ckpt.save(self.folder / "best.pt", self._build_checkpoint(weights))

    @contextmanager
    def ema_model(self) -> Iterator[M]:
        """The model with its averaged weights, in eval mode, without gradients."""
        self.nan_guard.check()
        unsharded: Any = self.step_fn.unsharded
        if unsharded is not None:
            unsharded.load_state_dict(self.step_fn.full(self.step_fn.ema.state_dict()))
            with torch.no_grad(), autocast(self.device, self.precision):
                yield unsharded.to(self.device).eval()
            unsharded.cpu()
            return
        raw_weights = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        self.model.load_state_dict(self.step_fn.ema.state_dict())
        self.model.eval()
        try:
            with torch.no_grad(), autocast(self.device, self.precision):
                yield self.model
        finally:
            self.model.load_state_dict(raw_weights)
            self.model.train()

    def log_image(self, name: str, image: np.ndarray) -> None:
        """Keep an (H, W, 3) uint8 image of this step: a PNG, and in TensorBoard."""
        if self.logger:
            self.logger.write_image(self.global_step, name, image)

    # -- state ------------------------------------------------------------------------------

    def save(self) -> None:
        """Write last.pt, whole or not at all; every process has to call it."""
        self.nan_guard.check()
        state = self.step_fn.state_dict()
        last = self.folder / "last.pt"
        if self.is_main_process:
            for key in ("model", "ema"):
                self.nan_guard.check_weights(state[key], self.global_step)
            checkpoint = self._build_checkpoint(state["model"]) | state
            checkpoint |= {"bad_validations": self.bad_validations, "lr_scale": self.lr_scale}
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
            "train": asdict(self.train) | {"freeze": list(self.train.freeze)},
            "model": weights,
            "fingerprint": ckpt.fingerprint(weights, self.metadata["config"]),
            "step": self.global_step,
            "best": self.best,
            "seconds": self.seconds,
            "parameters": self.parameters,
            "frozen_parameters": self.step_fn.frozen_parameters,
            "kernels": self.kernels,
            "versions": {"torch": str(torch.__version__), "numpy": np.__version__},
        }

    def _resume(self, path: Path) -> None:
        from pipeline.training import resume

        last = ckpt.load(path, self.stage)
        unsharded = self.step_fn.unsharded
        whole = self.model if unsharded is None else unsharded
        resume.check_resumable(last, path, self.metadata, self.train, whole)
        self.train = resume.with_former_init(self.train, last)
        try:
            self.step_fn.load_state_dict(last)
            resume.check_resumed_state(self.step_fn)
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as problem:
            raise ValueError(
                f"{path} is whole, but this training cannot take it over "
                f"({type(problem).__name__}: {one_line(problem)}); --restart starts over"
            ) from problem
        kept = resume.resumed(last, self.metadata, self.train, self.folder / "best.pt")
        self.metadata, self.best, self.bad_validations = kept.metadata, kept.best, kept.bad
        self.train = self.step_fn.train = kept.train
        self._started, self.nan_guard.last_checkpoint = True, path
        self.global_step = last["step"]
        self.seconds, self.lr_scale = last["seconds"], last["lr_scale"]

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
