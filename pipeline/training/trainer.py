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
from data.batch_sampler import batch_order
from models.world import Arithmetic, arithmetic
from pipeline import checkpoint as ckpt
from pipeline.device import describe_device, pick_device, pick_precision, room_for_data
from pipeline.lock import lock
from pipeline.training import fsdp
from pipeline.training.device_idle import Idle
from pipeline.training.logger import Log, say
from pipeline.training.nan_guard import Finite, Losses
from pipeline.training.shutdown_distributed import leave
from pipeline.training.signals import asked_to_stop
from pipeline.training.train_config import TrainConfig
from pipeline.training.train_step import Descent

B = TypeVar("B", covariant=True)
RESUMED = ("average", "optimizer", "step", "best", "waited", "seconds", "factor")


class Batches(Sized, Protocol[B]):
    """Anything that gives a batch for an array of indices."""

    def batch(self, indices: np.ndarray) -> B: ...


class Near(Protocol):
    """Data that can lie on a GPU."""

    def keep_on(self, device: torch.device, memory_limit: int) -> None: ...


class Run:
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
        identity: dict[str, Any],
        objective: Callable[..., Losses] | None = None,
        restart: bool = False,
        higher_is_better: bool = True,
        data: str = "",
        flags: str = "train",
    ) -> None:
        self.stage, self.folder, self.train, self.identity = stage, folder, train, identity
        self.higher_is_better, self.flags = higher_is_better, flags
        self.device = pick_device()
        # autocast is ours: Accelerate holds one precision for the whole process
        self.precision: Arithmetic = pick_precision(self.device, train.precision)
        self.accelerator = Accelerator(cpu=self.device.type == "cpu", mixed_precision="no")
        self.device = self.accelerator.device
        atexit.register(leave)
        if train.batch_size % self.accelerator.num_processes:
            raise ValueError(
                f"a batch of {train.batch_size} does not part evenly among "
                f"{self.accelerator.num_processes} processes; change --{flags}.batch-size"
            )
        torch.manual_seed(train.seed)
        if self.is_main:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = lock(folder)

        last, best = folder / "last.pt", folder / "best.pt"
        if best.exists() and not last.exists() and not restart:
            raise ValueError(
                f"{best} is a finished model, and there is no last.pt beside it to go on from; "
                f"--restart begins anew in its place, another --run keeps it"
            )
        self._begun = False  # last.pt is of this training
        self.model = model.to(self.device)
        self.finite = Finite(stage, flags, at_once=self.device.type == "cpu")
        goal: Callable[..., Losses] = objective or model.loss  # type: ignore[assignment]
        self.descent = Descent(
            model, goal, train, self.accelerator, self.precision, self.finite, flags
        )
        self.idle = Idle(self.device)

        self.step, self.best, self.waited, self.seconds = 0, None, 0, 0.0
        self.factor = 1.0  # of the learning rate, halved on a plateau
        if last.exists() and not restart:
            self._resume(ckpt.load(last, stage, "cpu" if self.descent.twin else self.device))
        self.log = Log(folder, self.step, train.wandb, flags) if self.is_main else None
        self._recent: dict[str, float] = {}
        self._idle = 0.0
        self._stop = False
        parameters = sum(p.numel() for p in self.descent.trained) / 1e6
        self.kernels = kernels.describe(self.device)
        self.say(
            f"{stage}: {describe_device(self.device)}, {self.precision}, {self.kernels}, "
            f"{self.accelerator.num_processes} process(es), {parameters:.2f} M parameters, {data}"
        )
        if train.sharding == "fsdp" and not self.descent.twin:
            self.say(f"{stage}: --{flags}.sharding fsdp has no effect in one process; use torchrun")
        if train.graph and self.device.type != "cuda":
            self.say(f"{stage}: --{flags}.graph has no effect without a CUDA GPU")
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
        say(self.accelerator, line)

    def say_done(self) -> None:
        best = self.folder / "best.pt"
        kept = best if best.exists() else f"but {best} is gone"
        self.say(
            f"{self.stage}: all {self.step} steps are done ({kept}); "
            f"--restart begins anew, --{self.flags}.steps goes further"
        )

    def first_on_main(self) -> AbstractContextManager[None]:
        """Let the main process do first what leaves files that the others then find."""
        return self.accelerator.main_process_first()

    def keep_near(self, clips: Near) -> None:
        """Let training data lie on a GPU where it fits there, and no other process loads it."""
        if self.device.type == "cuda" and not self.train.workers:
            clips.keep_on(self.device, room_for_data(self.device))

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
            for batch in self.idle.waiting(loader):
                torch.manual_seed(hash_seed(self.train.seed, self.step))
                yield self.step, batch
                self.seconds += time.monotonic() - started
                started = time.monotonic()
                bar.update()
                terms = {k: f"{v:.3g}" for k, v in list(self._recent.items())[:3]}
                bar.set_postfix(terms | {"idle": f"{self._idle:.0%}"})
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
        with self.idle.busy():
            totals = self.descent.take_step(self.step, self._learning_rate(), tensors)
        norm = totals.pop("grad_norm")
        self.step += 1
        if self.step % self.train.report_every == 0 or self.step == 1:
            self.finite.check()
            self._recent = {k: float(v) for k, v in totals.items()}
            self._idle = self.idle.share()
            extra = {
                "grad_norm": float(norm),
                "learning_rate": self._learning_rate(self.step - 1),
                "idle": self._idle,
            }
            if self.descent.scaler.is_enabled():
                extra["loss_scale"] = self.descent.scaler.get_scale()
            if not isfinite(extra["grad_norm"]):
                del extra["grad_norm"]  # a step that was left out; JSON has no infinity
            if self.log:
                self.log.write(self.step, self._recent | extra)
        return totals

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
        if not self._begun:  # never a best.pt without the last.pt that goes on from there
            self.save()
        weights = fsdp.whole(self.averaged_weights()) if better else {}
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
        twin = self.descent.twin
        if twin is not None:
            twin.load_state_dict(fsdp.whole(self.averaged_weights()))
            with torch.no_grad(), arithmetic(self.device, self.precision):
                yield twin.to(self.device).eval()
            twin.cpu()
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
        return self.descent.average.weights if self.train.average else self.model.state_dict()

    def save(self) -> None:
        """Write last.pt, whole or not at all; every process has to call it."""
        self.finite.check()
        state = self.descent.state()
        last = self.folder / "last.pt"
        if self.is_main:
            checkpoint = self._described(state["model"]) | state
            checkpoint |= {"waited": self.waited, "factor": self.factor}
            written = last if self._begun else self.folder / "first.pt"
            ckpt.save(written, checkpoint)
            if not self._begun:  # it is on the disk: now the files of a former training may go
                (self.folder / "best.pt").unlink(missing_ok=True)
                written.replace(last)
        self._begun, self.finite.last = True, last

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
            "kernels": self.kernels,
            "versions": {"torch": str(torch.__version__), "numpy": np.__version__},
        }

    def _resume(self, last: ckpt.Checkpoint) -> None:
        where = self.folder / "last.pt"
        missing = ", ".join(key for key in RESUMED if key not in last)
        if missing:
            raise ValueError(
                f"{where} holds no {missing}, so there is nothing to go on from (a copy of a "
                f"best.pt?); --restart begins anew"
            )
        for key, value in self.identity["config"].items():
            if _lasting(last["config"].get(key)) != _lasting(value):
                raise ValueError(
                    f"{where} was begun with {key} = {last['config'].get(key)}, but now it is "
                    f"{value}; --restart begins anew, another --run keeps both"
                )
        for key in ("parent", "clone"):  # a clone is only beneath an actor-critic
            now = self.identity.get(key)
            if now is None:
                continue
            known = last.get(key, now)  # older ones do not say what they were cloned from
            if now["fingerprint"] != known["fingerprint"]:
                raise ValueError(
                    f"{where} was begun on {known['path']} with fingerprint "
                    f"{known['fingerprint']}, but now it is {now['fingerprint']}; --restart begins "
                    f"anew"
                )
        self.descent.load(last)
        self._begun, self.finite.last = True, where
        self.step, self.waited = last["step"], last["waited"]
        # without best.pt, ended before its first was written, the next is the best
        self.best = last["best"] if (self.folder / "best.pt").exists() else None
        self.seconds, self.factor = last["seconds"], last["factor"]

    def _learning_rate(self, step: int | None = None) -> float:
        """Of a step; the next one if none is given."""
        train, at = self.train, self.step if step is None else step
        rise = min(1.0, (at + 1) / max(1, train.warmup))
        fall = 1.0
        if train.schedule == "cosine":
            through = at / max(1, train.steps)
            fall = 0.02 + 0.98 * (1 + np.cos(np.pi * min(1.0, through))) / 2
        return float(train.learning_rate * rise * fall * self.factor)

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
