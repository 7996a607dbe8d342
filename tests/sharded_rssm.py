"""Trains an RSSM for a step on one process or several.

The likeliest z stands for a sampled one: processes draw other random numbers for a row.
Every process leaves its number of trained weights in FOLDER/weights-<number>.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from sharded_run import IDENTITY, TRAIN, Sharding
from torch.distributed.tensor import DTensor

from data.actions import ActionSpec
from data.batch import Batch
from models.dynamics.rssm import Rssm, RssmConfig
from pipeline.training.trainer import Trainer

ACTIONS = ActionSpec("continuous", ("x", "y"), (0.0, 0.0), (1.0, 1.0))
CONFIG = RssmConfig(
    deter_dim=32, num_groups=4, num_classes=4, hidden_dim=16, num_blocks=4, embed_dim=24,
    channels=8, context_frames=3, clip_length=5, free_nats=0.0,
)  # fmt: skip


class Frames:
    """Noise, of four clips that differ."""

    def __len__(self) -> int:
        return 4

    def batch(self, indices: np.ndarray) -> Batch:
        rng = torch.Generator().manual_seed(0)
        rows = torch.from_numpy(indices)
        return Batch(
            frames=torch.randint(0, 256, (4, 5, 3, 16, 16), generator=rng).byte()[rows],
            actions=torch.rand(4, 5, 2, generator=rng)[rows],
            rewards=torch.rand(4, 5, generator=rng)[rows],
            continues=torch.ones(4, 5)[rows],
        )


def train(folder: Path, sharding: Sharding = "none") -> None:
    random = torch.Tensor.exponential_
    torch.Tensor.exponential_ = lambda self: self.fill_(1.0)  # type: ignore[method-assign]
    torch.manual_seed(0)
    model = Rssm(CONFIG, (16, 16), ACTIONS)
    for weight in model.parameters():
        if not weight.any():
            torch.nn.init.normal_(weight, std=0.1)
    config = replace(TRAIN, steps=1, batch_size=4, grad_accum_steps=1, sharding=sharding)
    trainer = Trainer("dynamics", folder, model, config, IDENTITY)
    for batch in trainer.batches(Frames()):
        trainer.step(model.loss, batch)
    own = [p.to_local() if isinstance(p, DTensor) else p for p in model.parameters()]
    number = trainer.accelerator.process_index
    (folder / f"weights-{number}").write_text(str(sum(p.numel() for p in own)))
    if trainer.is_main_process:
        trainer._lock.close()
    torch.Tensor.exponential_ = random  # type: ignore[method-assign]
