"""What a run writes as it goes: JSON lines, TensorBoard, pictures, Weights & Biases if asked."""

from __future__ import annotations

import importlib
import json
import time
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
from accelerate import Accelerator
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from data.shards import write_whole


def say(accelerator: Accelerator, line: str) -> None:
    """Print a line once, whatever the number of processes, above a progress bar."""
    if accelerator.is_main_process:
        tqdm.write(line)


class Log:
    """Append to FOLDER/log.jsonl; lines past `step`, from before a crash, are dropped."""

    def __init__(self, folder: Path, step: int, wandb: bool = False, flags: str = "train") -> None:
        self.path = folder / "log.jsonl"
        self.pictures = folder / "pictures"
        self.wandb = None
        if wandb:
            try:
                self.wandb = importlib.import_module("wandb")
            except ImportError:
                raise ValueError(
                    f"--{flags}.wandb needs the package wandb, which is not installed; "
                    "pip install wandb, or leave the flag out"
                ) from None
            self.wandb.init(project="dreamstage", name=str(folder), resume="allow")
        self._rewind(step)
        self.board = SummaryWriter(folder / "tensorboard", purge_step=step + 1, max_queue=100)

    def write(self, step: int, figures: dict[str, float]) -> None:
        line = {"step": step, "time": round(time.time(), 2)} | figures
        with open(self.path, "a") as file:
            file.write(json.dumps(line) + "\n")
        for name, value in figures.items():
            self.board.add_scalar(name, value, step)
        if self.wandb:
            self.wandb.log(figures, step=step)

    def picture(self, step: int, name: str, pixels: np.ndarray) -> None:
        self.pictures.mkdir(exist_ok=True)
        written = imageio.imwrite("<bytes>", pixels, extension=".png")
        write_whole(self.pictures / f"{name}-{step:06d}.png", written)
        self.board.add_image(name, pixels, step, dataformats="HWC")

    def _rewind(self, step: int) -> None:
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text().splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line)
            except (ValueError, KeyError):  # a line cut short by a crash
                continue
        if step == 0:
            kept = []
        write_whole(self.path, "".join(f"{line}\n" for line in kept).encode())
