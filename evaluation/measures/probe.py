"""Probes of the simulator's state in the latents, linear and a small MLP (Alain and Bengio,
arXiv:1610.01644).

Letters: n frames, D numbers of a frame's latents, Y targets.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from data.shards.episode_dataset import EpisodeDataset
from data.shards.shard_header import Split
from evaluation.readers.fit import fit
from evaluation.readers.fit_estimator import sample_frames
from models.layers.sigreg import effective_rank
from models.world import World

TARGETS = ("agent_x", "agent_y", "block_x", "block_y", "block_sin", "block_cos")
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)  # of the linear probe, at latents of variance 1


def probe_targets(states: Tensor) -> Tensor:
    """Give the targets of Push-T states: (n, 5) -> (n, Y); an angle as its sine and cosine."""
    angle = states[:, 4]
    return torch.stack([*states[:, :4].unbind(1), angle.sin(), angle.cos()], 1)


def probe(
    world: World,
    dataset: EpisodeDataset,
    num_train: int = 8000,
    num_test: int = 4000,
    seed: int = 0,
) -> dict[str, Any]:
    """Fit probes on training episodes; give Pearson's r on held-out ones, by target.

    `linear` and `mlp`: {target: r}; `n`, frames of held-out episodes; `effective_rank` of the
    latents (exp of the entropy of their covariance's eigenvalues) and `latent_variance`, the mean
    over their numbers: near 0 where an encoder has collapsed.
    """
    train_latents, train_targets = _read_latents(world, dataset, "train", num_train, seed)
    test_latents, test_targets = _read_latents(world, dataset, "test", num_test, seed)
    latent_mean, latent_std = train_latents.mean(0), train_latents.std(0).clamp(min=1e-6)
    train_latents, test_latents = (
        (train_latents - latent_mean) / latent_std,
        (test_latents - latent_mean) / latent_std,
    )
    target_mean, target_std = train_targets.mean(0), train_targets.std(0)
    normalized_targets = (train_targets - target_mean) / target_std
    return {
        "n": len(test_targets),
        "linear": correlations(
            ridge_predict(train_latents, normalized_targets, test_latents), test_targets
        ),
        "mlp": correlations(
            _mlp(train_latents, normalized_targets, test_latents, seed), test_targets
        ),
        "effective_rank": effective_rank(train_latents * latent_std),
        "latent_variance": float(latent_std.square().mean()),
    }


def _read_latents(
    world: World, dataset: EpisodeDataset, split: Split, num_frames: int, seed: int
) -> tuple[Tensor, Tensor]:
    frames, states, _ = sample_frames(dataset, split, num_frames, seed)
    with torch.inference_mode():
        parts = [world.vectors(world.embed(part)).flatten(1).float() for part in frames.split(256)]
    return torch.cat(parts).cpu().clone(), probe_targets(states)


def ridge_predict(x: Tensor, y: Tensor, x_test: Tensor) -> Tensor:
    """Predict by ridge regression: (n, D), (n, Y), (m, D) -> (m, Y)."""
    return x_test @ fit_ridge(x, y)


def fit_ridge(x: Tensor, y: Tensor) -> Tensor:
    """Fit weights by ridge regression: (n, D), (n, Y) -> (D, Y).

    Of each target the penalty is the one that errs least on the last fifth of the rows, fitted on
    those before: with one for all, latents of about as many numbers as frames say nothing.
    """
    fitted = len(x) - len(x) // 5
    errors = x[fitted:] @ _by_penalty(x[:fitted], y[:fitted]) - y[fitted:]
    best = errors.square().sum(1).argmin(0)
    return _by_penalty(x, y)[best, :, torch.arange(y.shape[1])].T


def _by_penalty(x: Tensor, y: Tensor) -> Tensor:
    """Weights by each of K penalties, through the smaller of the two Gram matrices: (K, D, Y)."""
    wide = x.shape[1] > len(x)
    gram, given = (x @ x.T, y) if wide else (x.T @ x, x.T @ y)
    identity = len(x) * torch.eye(len(gram)).to(gram)
    found = [torch.linalg.solve(gram + each * identity, given) for each in PENALTIES]
    return torch.stack([x.T @ weights if wide else weights for weights in found])


def _mlp(x: Tensor, y: Tensor, x_test: Tensor, seed: int, steps: int = 600) -> Tensor:
    """Predict by a network of two hidden layers, fitted to (n, D) and (n, Y)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Linear(x.shape[1], 128), nn.GELU(), nn.Linear(128, 128), nn.GELU(),
            nn.Linear(128, y.shape[1]),
        )  # fmt: skip

    def loss() -> Tensor:
        rows = torch.randint(len(x), (512,), generator=generator)
        return nn.functional.mse_loss(net(x[rows]), y[rows])

    fit(net, loss, steps, learning_rate=2e-3, weight_decay=1e-2, schedule="cosine")
    with torch.no_grad():
        return net(x_test)


def correlations(predicted: Tensor, truth: Tensor) -> dict[str, float]:
    """Compute Pearson's r by target; 0 where all predictions are equal."""
    predicted, truth = predicted - predicted.mean(0), truth - truth.mean(0)
    norms = (predicted.norm(dim=0) * truth.norm(dim=0)).clamp(min=1e-8)
    return dict(zip(TARGETS, ((predicted * truth).sum(0) / norms).tolist(), strict=True))
