"""The log of a training run: JSON lines, TensorBoard, images, and Weights & Biases by a flag."""

from __future__ import annotations

import importlib
import json
import time
from math import isfinite
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
from accelerate import Accelerator
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from data.io.files import atomic_write, parse_json


def log_line(accelerator: Accelerator, line: str) -> None:
    """Print a line once, whatever the number of processes, above a progress bar."""
    if accelerator.is_main_process:
        tqdm.write(line)


class Logger:
    """Append to FOLDER/log.jsonl; lines past `step`, from before a crash, are dropped."""

    def __init__(
        self, folder: Path, step: int, wandb: bool = False, flag_prefix: str = "train"
    ) -> None:
        self.path = folder / "log.jsonl"
        self.images = folder / "images"
        self.wandb = None
        if wandb:
            try:
                self.wandb = importlib.import_module("wandb")
            except ImportError:
                raise ValueError(
                    f"--{flag_prefix}.wandb needs the package wandb, which is not installed; "
                    "pip install wandb, or leave the flag out"
                ) from None
            self.wandb.init(project="dreamstage", name=str(folder), resume="allow")
        self._truncate(step)
        self.tensorboard = SummaryWriter(folder / "tensorboard", purge_step=step + 1, max_queue=100)

    def write(self, step: int, metrics: dict[str, float]) -> None:
        # JSON has no infinity
        finite = {name: value for name, value in metrics.items() if isfinite(value)}
        record = {"step": step, "time": round(time.time(), 2)} | finite
        try:
            with open(self.path, "a") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as problem:  # a full disk does not say which file
            raise ValueError(
                f"{self.path} was not written: {problem.strerror or problem}"
            ) from None
        for name, value in metrics.items():
            self.tensorboard.add_scalar(name, value, step)
        if self.wandb:
            self.wandb.log(metrics, step=step)

    def write_image(self, step: int, name: str, image: np.ndarray) -> None:
        self.images.mkdir(exist_ok=True)
        encoded = imageio.imwrite("<bytes>", image, extension=".png")
        atomic_write(self.images / f"{name}-{step:06d}.png", encoded)
        self.tensorboard.add_image(name, image, step, dataformats="HWC")

    def _truncate(self, step: int) -> None:
        if not self.path.exists():
            return
        kept = []
        # of bytes, because one line that is no text does not make the others so
        for line in self.path.read_bytes().splitlines() if step else ():
            try:
                record = parse_json(line)
            except ValueError:  # a line cut short by a crash
                continue
            if isinstance(record, dict) and _is_before(record.get("step"), step):
                kept.append(line)
        atomic_write(self.path, b"".join(line + b"\n" for line in kept))


def _is_before(value: object, step: int) -> bool:
    return isinstance(value, int) and value <= step
