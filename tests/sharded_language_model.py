"""Trains a language model as dynamics for a step on one process or several.

Every process leaves its number of trained weights, and of frozen ones, in FOLDER/weights-<number>.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from sharded_run import IDENTITY, TRAIN, Sharding
from torch import nn
from torch.distributed.tensor import DTensor

from data.actions import ActionSpec
from data.batch import Batch
from models.dynamics.language_model import LanguageModelConfig, LanguageModelDynamics
from models.layers.transformer import TransformerConfig
from models.tokenizers.tokenizer import LatentSpec
from pipeline.training.trainer import Trainer

ACTIONS = ActionSpec("continuous", ("x", "y"), (-1.0, -1.0), (1.0, 1.0))
LATENTS = LatentSpec("continuous", (1, 1), 6)
SMALL = TransformerConfig(dim=24, num_layers=2, num_heads=2, mlp_dim=32, context_frames=2)
CONFIG = LanguageModelConfig(transformer=SMALL, frameskip=1, clip_length=4)


class Noise:
    """Latents of four clips that differ."""

    def __len__(self) -> int:
        return 4

    def batch(self, indices: np.ndarray) -> Batch:
        random = torch.Generator().manual_seed(0)
        rows = torch.from_numpy(indices)
        # each row changes as much as any other: the loss is relative to the change of its batch
        latents = torch.randn(4, 4, 1, 6, generator=random).sign().cumsum(1)
        return Batch(
            latents=latents[rows],
            actions=torch.rand(4, 4, 2, generator=random)[rows],
            rewards=torch.rand(4, 4, generator=random)[rows],
        )


def train(folder: Path, sharding: Sharding, tuning: str) -> None:
    torch.manual_seed(0)
    config = replace(CONFIG, tuning=tuning)
    model = LanguageModelDynamics(config, LATENTS, ACTIONS)
    for name, weight in model.named_parameters():
        if not weight.any():
            nn.init.normal_(weight, std=0.1)
        weight.requires_grad_(weight.requires_grad and "continue_head" not in name)
    steps = replace(TRAIN, steps=1, batch_size=4, grad_accum_steps=1, sharding=sharding)
    trainer = Trainer("dynamics", folder, model, steps, IDENTITY)
    for batch in trainer.batches(Noise()):
        trainer.step(model.loss, batch)
    count = {True: 0, False: 0}
    for weight in model.parameters():
        own = weight.to_local() if isinstance(weight, DTensor) else weight
        count[weight.requires_grad] += own.numel()
    number = trainer.accelerator.process_index
    (folder / f"weights-{number}").write_text(f"{count[True]} {count[False]}")
    if trainer.is_main_process:
        trainer._lock.close()
