"""What latents know of the simulator's state: a linear and a small MLP probe (Alain and Bengio,
arXiv:1610.01644).

Letters: n frames, D numbers of a frame's latents, Y targets.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from data.shards import Recordings
from evaluation.readers.fit_estimator import sample_frames
from models.layers.sigreg import effective_rank

TARGETS = ("agent_x", "agent_y", "block_x", "block_y", "block_sin", "block_cos")
PENALTY = 1e-3  # of the linear probe, beside a variance of 1


def targets_of(states: Tensor) -> Tensor:
    """Push-T states (n, 5) -> (n, Y): an angle is learnt as sine and cosine."""
    angle = states[:, 4]
    return torch.stack([*states[:, :4].unbind(1), angle.sin(), angle.cos()], 1)


def probe(
    world: Any, recordings: Recordings, train: int = 8000, test: int = 4000, seed: int = 0
) -> dict[str, Any]:
    """Fit probes on training episodes; give Pearson's r on held-out ones, by target.

    `linear` and `mlp`: {target: r}; `n`, frames of held-out episodes; `rank`, the effective rank
    of the latents (exp of the entropy of their covariance's eigenvalues) and `variance`, the mean
    over their numbers: near 0 where an encoder has collapsed.
    """
    known, truth = _read(world, recordings, "train", train, seed)
    asked, answers = _read(world, recordings, "test", test, seed)
    centre, scale = known.mean(0), known.std(0).clamp(min=1e-6)
    known, asked = (known - centre) / scale, (asked - centre) / scale
    mean, spread = truth.mean(0), truth.std(0)
    wanted = (truth - mean) / spread
    return {
        "n": len(answers),
        "linear": _correlations(_linear(known, wanted, asked), answers),
        "mlp": _correlations(_mlp(known, wanted, asked, seed), answers),
        "rank": effective_rank(known * scale),
        "variance": float(scale.square().mean()),
    }


def _read(
    world: Any, recordings: Recordings, split: Any, count: int, seed: int
) -> tuple[Tensor, Tensor]:
    frames, states, _ = sample_frames(recordings, split, count, seed)
    with torch.inference_mode():
        parts = [world.vectors(world.encode(part)).flatten(1).float() for part in frames.split(256)]
    return torch.cat(parts).cpu().clone(), targets_of(states)


def _linear(x: Tensor, y: Tensor, asked: Tensor) -> Tensor:
    """Ridge regression through the smaller of the two Gram matrices."""
    penalty = PENALTY * len(x)
    if x.shape[1] <= len(x):
        gram = x.T @ x + penalty * torch.eye(x.shape[1])
        return asked @ torch.linalg.solve(gram, x.T @ y)
    gram = x @ x.T + penalty * torch.eye(len(x))
    return asked @ (x.T @ torch.linalg.solve(gram, y))


def _mlp(x: Tensor, y: Tensor, asked: Tensor, seed: int, steps: int = 600) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Linear(x.shape[1], 128), nn.GELU(), nn.Linear(128, 128), nn.GELU(),
            nn.Linear(128, y.shape[1]),
        )  # fmt: skip
    optimizer = torch.optim.AdamW(net.parameters(), 2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        rows = torch.randint(len(x), (512,), generator=random)
        loss = nn.functional.mse_loss(net(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        return net(asked)


def _correlations(read: Tensor, truth: Tensor) -> dict[str, float]:
    """Pearson's r by target; 0 for what is read the same everywhere."""
    read, truth = read - read.mean(0), truth - truth.mean(0)
    lengths = (read.norm(dim=0) * truth.norm(dim=0)).clamp(min=1e-8)
    return dict(zip(TARGETS, ((read * truth).sum(0) / lengths).tolist(), strict=True))
