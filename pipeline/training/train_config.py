"""Settings of a training run, whatever it trains."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from data.ranges import MAX_SEED, MAX_STEPS, MAX_WORKERS, CheckedConfig, Range
from pipeline.device import PrecisionOption

CompileMode = Literal["no", "yes", "auto"]


@dataclass(frozen=True)
class TrainConfig(CheckedConfig):
    steps: Annotated[int, Range(1, MAX_STEPS)] = 1000
    """Optimizer steps in all, those before a resume included; as many again each time that the data
    has grown."""
    batch_size: Annotated[int, Range(1, 2**20)] = 32
    """Clips (or frames) a step, over all processes."""
    grad_accum_steps: Annotated[int, Range(1, 2**20)] = 1
    """Micro-batches that a batch is cut into, to fit the memory; the step is the same but for what
    a method computes over a batch (docs/how-to/add-a-method.md)."""
    learning_rate: Annotated[float, Range(above=0, high=10)] = 1e-3
    """Peak learning rate."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """muon: the steps of linear and convolutional layers are made orthogonal. Fewer are needed,
    and each costs more where a batch has few rows (pipeline/training/muon.py)."""
    warmup_steps: Annotated[int, Range(0, MAX_STEPS)] = 50
    """Steps of linear warm-up."""
    schedule: Literal["cosine", "plateau", "constant"] = "cosine"
    """After the warm-up: cosine to a fiftieth, halved when validation stalls, or constant."""
    weight_decay: Annotated[float, Range(0, 10)] = 0.01
    beta2: Annotated[float, Range(0, below=1)] = 0.95
    max_grad_norm: Annotated[float, Range(above=0, high=10**9)] = 1.0
    """Largest norm of the gradient."""
    ema_decay: Annotated[float, Range(0, below=1)] = 0.99
    """Decay of the moving average of the weights that is validated and handed on; 0 is none."""
    patience: Annotated[int, Range(0, MAX_STEPS)] = 0
    """Stop after this many validations without a better one; 0 never."""
    eval_every: Annotated[int, Range(1, MAX_STEPS)] = 200
    """Steps between validations."""
    save_every: Annotated[int, Range(1, MAX_STEPS)] = 100
    """Steps between checkpoints; a signal saves at once."""
    log_every: Annotated[int, Range(1, MAX_STEPS)] = 20
    """Steps between lines of the log."""
    precision: PrecisionOption = "auto"
    """bf16, fp16 (with a loss scaler) or fp32 arithmetic; auto takes bf16 where the hardware has
    it."""
    compile: CompileMode = "no"
    """Compile the loss and its gradient (torch.compile). A minute or two at every start, and other
    roundings; auto times both on a long run and keeps the faster."""
    cuda_graph: bool = False
    """Capture a whole step as one CUDA graph and replay it: for models so small that starting their
    kernels takes longer than the kernels. One process, bf16 or fp32."""
    sharding: Literal["none", "fsdp"] = "none"
    """Spread weights, gradients and optimizer state over the processes (FSDP)."""
    init_from: str = ""
    """A run folder, a checkpoint's file or a published run (hf://USER/NAME@REVISION), whose weights
    to begin with, by name and shape."""
    init_lr_scale: Annotated[float, Range(above=0, high=100)] = 0.1
    """Factor on the learning rate where weights come from init_from, also after a resume."""
    freeze: tuple[str, ...] = ()
    """Patterns of weight names that stay as they are, such as "encoder.*": no gradient, eval mode,
    no optimizer state."""
    num_workers: Annotated[int, Range(0, MAX_WORKERS)] = 0
    """Processes that load batches; the batches do not depend on it."""
    seed: Annotated[int, Range(0, MAX_SEED)] = 0
    wandb: bool = False
    """Log to Weights & Biases too (pip install wandb)."""

    @property
    def peak_learning_rate(self) -> float:
        """After the warm-up: lower where the weights are another run's."""
        return self.learning_rate * (self.init_lr_scale if self.init_from else 1.0)

    def learning_rate_at(self, step: int, turns: tuple[int, ...] = ()) -> float:
        """Of a step, by the schedule, which starts anew at each of `turns`; a cosine ends at 2%."""
        marks = [0, *(turn for turn in turns if turn < self.steps), self.steps]
        start = max(mark for mark in marks[:-1] if mark <= step)
        length = max(1, marks[marks.index(start) + 1] - start)
        share = min(1.0, (step - start + 1) / max(1, self.warmup_steps))
        if self.schedule == "cosine":
            share *= 0.51 + 0.49 * math.cos(math.pi * min(1.0, (step - start) / length))
        return self.peak_learning_rate * share
