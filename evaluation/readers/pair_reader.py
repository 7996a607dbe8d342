"""A small network that reads what happened between two frames, or would happen after one.

It says how much there is to know: from both frames, the ceiling of a latent action; from the first
alone, its floor. Letters: n steps, Y numbers that are read.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from evaluation.readers.fit import fit
from evaluation.readers.inverse_dynamics import IdmNet
from models.layers.precision import autocast
from pipeline.device import pick_precision

BATCH_SIZE, DIM = 48, 32


def read_pairs(
    train: Tensor,
    targets: Tensor,
    test: Tensor,
    steps: int,
    first_only: bool = False,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Fit on pairs (n, 2, 3, H, W) uint8 and (n, Y), and read those of `test`: (m, Y).

    first_only: the second frame is not looked at.
    """
    device = torch.device(device)
    precision = pick_precision(device, "auto")
    generator = torch.Generator().manual_seed(seed)
    mean, std = targets.mean(0), targets.std(0).clamp(min=1e-6)
    scaled = ((targets - mean) / std).float()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = IdmNet(targets.shape[1], DIM)
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def read(pairs: Tensor) -> Tensor:
        before, after = (pairs.to(device).float() / 255).unbind(1)
        after = before if first_only else after
        x = torch.cat([before - 0.5, after - 0.5, after - before], 1)
        with autocast(device, precision):
            return network(x.contiguous(memory_format=torch.channels_last)).float()

    def loss() -> Tensor:
        rows = torch.randint(len(train), (BATCH_SIZE,), generator=generator)
        return F.mse_loss(read(train[rows]), scaled[rows].to(device))

    name = "floor" if first_only else "ceiling"
    fit(
        network, loss, steps,
        learning_rate=2e-3, weight_decay=0.01, schedule="cosine", max_grad_norm=1.0, progress=name,
    )  # fmt: skip
    with torch.inference_mode():
        return torch.cat([read(part) for part in test.split(256)]).cpu() * std + mean
