"""Trains on one process or several, as torchrun starts them: FOLDER STEP SHARDING, and more such.

Every run has TRAIN.steps steps, and is stopped after STEP of them.  Every process leaves what it
has seen in FOLDER/process-<number>.json.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from data.batch import Batch
from models.layers.transformer import Transformer, TransformerConfig
from models.method import Best, TrainableModule
from pipeline.training.train_config import TrainConfig
from pipeline.training.trainer import Trainer

Sharding = Literal["none", "fsdp"]
TRAIN = TrainConfig(
    steps=5, batch_size=8, grad_accum_steps=2, warmup_steps=1, eval_every=2, save_every=10,
    log_every=1, precision="fp32", learning_rate=1e-2, ema_decay=0.5, max_grad_norm=0.1,
)  # fmt: skip
IDENTITY = {
    "config": {"kind": "sums"}, "image_size": [4, 4], "latents": {}, "actions": {},
    "data_actions": {}, "parent": {"path": "-", "fingerprint": "0"},
}  # fmt: skip


class Numbers:
    """Four tokens of three numbers."""

    def __len__(self) -> int:
        return 64

    def batch(self, indices: np.ndarray) -> Batch:
        every = torch.randn(64, 4, 3, generator=torch.Generator().manual_seed(0))
        return Batch(latents=every[torch.from_numpy(indices)])


class Sums(TrainableModule):
    """Learns each token's sum; has an odd width, and frozen weights and a buffer that move."""

    best = Best("error", higher_is_better=False)
    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        config = TransformerConfig(
            dim=16, num_layers=2, num_heads=2, mlp_dim=24, activation_checkpointing=True
        )
        self.embed = nn.Linear(3, 16)
        self.transformer = Transformer(config, torch.zeros(4, 2), causal_within_frame=False)
        self.out = nn.Linear(16, 1)
        self.slow = nn.Linear(16, 1).requires_grad_(False)
        self.register_buffer("seen", torch.zeros(()))
        self.seen_before = 0.0  # what the buffer was at the last loss
        self._pending: list[Tensor] = []

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        (x,) = batch.require("latents")
        self.seen_before = float(self.seen)
        if self.training:
            self._pending.append(x.mean())
        features, _ = self.transformer(self.embed(x))
        total = x.sum(-1, keepdim=True)
        return {
            "error": (self.out(features) - total).square().mean(),
            "slow": (self.slow(features.detach()) - total).square().mean(),
        }

    def after_step(self) -> None:
        self.seen += sum(self._pending)
        self._pending = []
        for slow, fast in zip(self.slow.parameters(), self.out.parameters(), strict=True):
            slow.lerp_(fast, 0.5)


def train(folder: Path, stop_at: int, sharding: Sharding = "none") -> Trainer[Sums]:
    torch.manual_seed(0)
    config = replace(TRAIN, sharding=sharding)
    trainer = Trainer("tokenizer", folder, Sums(), config, IDENTITY)
    errors, metrics = [], {}
    try:
        for batch in trainer.batches(Numbers()):
            errors.append(float(trainer.step(trainer.model.loss, batch)["error"]))
            # a signal that only the first process receives
            trainer._stop_requested = trainer.is_main_process and trainer.global_step == stop_at
            if trainer.every(config.eval_every):
                with trainer.ema_model() as ema:
                    losses = ema.loss(Numbers().batch(np.arange(64)))
                    metrics = {k: float(v) for k, v in losses.items()}
                # the others' metrics differ in their last bits: those of the first count
                process = trainer.accelerator.process_index
                trainer.save_best(metrics | {"error": metrics["error"] + process})
    except KeyboardInterrupt:
        pass
    own = [p.to_local() if isinstance(p, DTensor) else p for p in trainer.model.parameters()]
    found: dict[str, Any] = {
        "errors": errors,
        "metrics": metrics,
        "weights": sum(p.numel() for p in own if p.requires_grad),
        "best": trainer.best,
        "seen_before": trainer.model.seen_before,
    }
    file = folder / f"process-{trainer.accelerator.process_index}.json"
    file.write_text(json.dumps(found))
    if trainer.is_main_process:
        trainer._lock.close()
    return trainer


if __name__ == "__main__":
    torch.set_num_threads(1)
    for folder, step, sharding in zip(*(sys.argv[n::3] for n in (1, 2, 3)), strict=True):
        train(Path(folder), int(step), cast(Sharding, sharding))
