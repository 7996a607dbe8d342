"""Runs on one process or several, as torchrun starts them: FOLDER STEPS [FOLDER STEPS ...].

Every process leaves what it has seen in FOLDER/process-<number>.json, and at its very end in the
first FOLDER/left-<number> whether it had taken leave of the others.
"""

from __future__ import annotations

import atexit
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from models.layers.transformer import Transformer, TransformerConfig
from pipeline.training.train_config import TrainConfig
from pipeline.training.trainer import Trainer

TRAIN = TrainConfig(
    steps=3, batch_size=8, grad_accum_steps=2, warmup_steps=1, eval_every=2, save_every=10,
    log_every=1, precision="fp32", learning_rate=1e-2, ema_decay=0.5, max_grad_norm=0.1,
)  # fmt: skip
IDENTITY = {"config": {"kind": "sums"}, "parent": {"path": "-", "fingerprint": "0"}}


class Numbers:
    """Four tokens of three numbers."""

    def __len__(self) -> int:
        return 64

    def batch(self, indices: np.ndarray) -> Tensor:
        every = torch.randn(64, 4, 3, generator=torch.Generator().manual_seed(0))
        return every[torch.from_numpy(indices)]


class Sums(nn.Module):
    """Learns each token's sum; has an odd width, frozen weights and a buffer that follow along."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        config = TransformerConfig(
            dim=16, num_layers=2, num_heads=2, mlp_dim=24, activation_checkpointing=True
        )
        self.look = nn.Linear(3, 16)
        self.transformer = Transformer(config, torch.zeros(4, 2), causal_within_frame=False)
        self.out = nn.Linear(16, 1)
        self.slow = nn.Linear(16, 1).requires_grad_(False)
        self.register_buffer("seen", torch.zeros(()))
        self.shown = 0.0  # what the buffer was before the last loss

    def loss(self, x: Tensor) -> dict[str, Tensor]:
        self.shown = float(self.seen)
        with torch.no_grad():
            self.slow.weight.lerp_(self.out.weight, 0.5)
            self.seen += x.mean()
        seen, _ = self.transformer(self.look(x))
        return {
            "error": (self.out(seen) - x.sum(-1, keepdim=True)).square().mean(),
            "slow": (self.slow(seen.detach()) - x.sum(-1, keepdim=True)).square().mean(),
        }


def go(folder: Path, steps: int, sharding: Literal["none", "fsdp"] = "none") -> Trainer:
    torch.manual_seed(0)
    train = replace(TRAIN, steps=steps, sharding=sharding)
    run = Trainer("tokenizer", folder, Sums(), train, IDENTITY, higher_is_better=False)
    errors, figures = [], {}
    for _, x in run.batches(Numbers()):
        errors.append(float(run.train_step(x)["error"]))
        if run.every(train.eval_every):
            with run.ema_model() as average:
                assert isinstance(average, Sums)
                losses = average.loss(Numbers().batch(np.arange(64)))
                figures = {k: float(v) for k, v in losses.items()}
            # the others' figures differ in their last bits: what the first one says is done
            run.save_best(figures["error"] + run.accelerator.process_index, figures)
    own = [p.to_local() if isinstance(p, DTensor) else p for p in run.model.parameters()]
    found = {
        "errors": errors,
        "figures": figures,
        "weights": sum(p.numel() for p in own if p.requires_grad),
        "best": run.best,
        "shown": run.step_fn.loss_module.model.shown,
    }
    (folder / f"process-{run.accelerator.process_index}.json").write_text(json.dumps(found))
    if run.is_main_process:
        run._lock.close()
    return run


if __name__ == "__main__":
    torch.set_num_threads(1)
    left = Path(sys.argv[1]) / f"left-{os.environ['RANK']}"
    atexit.register(lambda: left.write_text(str(not dist.is_initialized())))
    for folder, steps in zip(sys.argv[1::2], sys.argv[2::2], strict=True):
        go(Path(folder), int(steps), "fsdp")
