"""A training run: device, optimizer, schedule, log, pictures, checkpoints, resume.

The batch of step s and its random numbers come from (seed, s) alone, so k + m steps equal k, stop,
resume, m.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Sized
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from data.order import batch_order
from models.world import arithmetic
from pipeline import checkpoint as ckpt
from pipeline.device import Precision, describe_device, pick_device, pick_precision
from pipeline.lock import lock
from pipeline.log import Log

B = TypeVar("B", covariant=True)
Losses = dict[str, Tensor]


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
    """bf16 or fp32 arithmetic; auto takes bf16 where the hardware has it."""
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
        self.precision: Literal["bf16", "fp32"] = pick_precision(self.device, train.precision)
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

        self.model = model.to(self.device)
        self.objective = _Objective(model, objective or model.loss)  # type: ignore[arg-type]
        trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            trained,
            lr=train.learning_rate,
            betas=(0.9, train.beta2),
            weight_decay=train.weight_decay,
            fused=self.device.type == "cuda" or None,
        )
        self.wrapped, self.optimizer = self.accelerator.prepare(self.objective, self.optimizer)
        self.average = {k: v.detach().clone() for k, v in model.state_dict().items()}

        self.step, self.best, self.waited, self.seconds = 0, None, 0, 0.0
        self.factor = 1.0  # of the learning rate, halved on a plateau
        last = folder / "last.pt"
        if last.exists() and not restart:
            self._resume(ckpt.load(last, stage, self.device))
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
        with _signals(self), bar:
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
        for low, high in pairwise(bounds):
            chunk = [None if t is None else t[low:high].to(self.device) for t in tensors]
            with arithmetic(self.device, self.precision):
                losses = self.wrapped(*chunk)
            share = (high - low) / rows
            total = sum((v for v in losses.values() if v.requires_grad), torch.zeros(()))
            if not torch.isfinite(total):
                terms = ", ".join(f"{k} {v.item():.3g}" for k, v in losses.items())
                raise ValueError(
                    f"{self.stage}: the loss is not finite at step {self.step} ({terms}); "
                    f"{self.folder / 'last.pt'} is whole: lower --train.learning-rate and go on"
                )
            self.accelerator.backward(total * share)
            for name, value in losses.items():
                totals[name] = totals.get(name, torch.zeros(())) + value.detach().cpu() * share
        norm = self.accelerator.clip_grad_norm_(self.wrapped.parameters(), self.train.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._follow_average()
        self.step += 1
        if self.step % self.train.report_every == 0 or self.step == 1:
            self._recent = {k: float(v) for k, v in totals.items()}
            norm_value = float(norm) if norm is not None else 0.0
            extra = {"grad_norm": norm_value, "learning_rate": self._learning_rate()}
            if self.log:
                self.log.write(self.step, self._recent | extra)
        return totals

    def due(self, every: int) -> bool:
        """True after each `every` steps, and at the end."""
        return self.step % every == 0 or self.step == self.train.steps

    def keep_best(self, value: float, figures: dict[str, float]) -> None:
        """Log a validation; write best.pt when `value` is the best so far."""
        value = float(value)
        sign = 1 if self.higher_is_better else -1
        better = self.best is None or sign * value > sign * self.best
        if better:
            self.best, self.waited = value, 0
        else:
            self.waited += 1
            if self.train.schedule == "plateau":
                self.factor /= 2
        if not self.is_main or self.log is None:
            return
        self.log.write(self.step, {f"validation/{k}": v for k, v in figures.items()})
        line = ", ".join(f"{k} {v:.4g}" for k, v in figures.items())
        self.say(f"{self.stage} step {self.step}: {line}{' (best)' if better else ''}")
        if better:
            ckpt.save(self.folder / "best.pt", self._described(self.averaged_weights()))

    @contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        """The model with its averaged weights, in eval mode, without gradients."""
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
        return self.average if self.train.average else self.model.state_dict()

    def save(self) -> None:
        """Write last.pt, whole or not at all."""
        if not self.is_main:
            return
        checkpoint = self._described(self.model.state_dict())
        checkpoint |= {
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
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
            if last["config"].get(key) != value:
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
        self.model.load_state_dict(last["model"])
        self.optimizer.load_state_dict(last["optimizer"])
        self.average = last["average"]
        self.step, self.best, self.waited = last["step"], last["best"], last["waited"]
        self.seconds, self.factor = last["seconds"], last["factor"]

    def _follow_average(self) -> None:
        if not self.train.average:
            return
        # a short memory at first, or the random start would weigh on it for long
        decay = min(self.train.average, (self.step + 1) / (self.step + 10))
        for name, value in self.model.state_dict().items():
            mean = self.average[name]
            if value.is_floating_point() and name in self._parameter_names:
                mean.lerp_(value.detach(), 1 - decay)
            else:
                mean.copy_(value)

    @property
    def _parameter_names(self) -> set[str]:
        if not hasattr(self, "_names"):
            self._names = {n for n, p in self.model.named_parameters() if p.requires_grad}
        return self._names

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


def hash_seed(*numbers: int) -> int:
    """Mix integers into a seed."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


@contextmanager
def _signals(run: Run) -> Iterator[None]:
    """SIGINT and SIGTERM ask for a stop after this step; a second one stops at once."""

    def ask(number: int, frame: object) -> None:
        if run._stop:
            raise KeyboardInterrupt
        run._stop = True

    wanted = (signal.SIGINT, signal.SIGTERM)
    try:
        before = {s: signal.signal(s, ask) for s in wanted}
    except ValueError:  # not in the main thread: a test or a notebook
        before = {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
