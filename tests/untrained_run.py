"""A run folder as the stages leave it, with untrained models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from data.batch import Batch
from data.shards.episode_dataset import EpisodeDataset
from models.controllers.goal_policy import GoalPolicyConfig
from models.controllers.policy import PolicyConfig
from models.dynamics.llama import LlamaConfig
from models.dynamics.predictor import PredictorConfig
from models.layers.transformer import TransformerConfig
from models.registry import DataSpec, build_controller, build_dynamics, build_tokenizer, describe
from models.tokenizers.keypoints import KeypointsConfig
from models.tokenizers.vqvae import VqVaeConfig
from pipeline import checkpoint
from pipeline.trained_on import TrainedOn, recordings_of


def small_configs(method: str, size: tuple[int, int]) -> tuple[Any, Any]:
    """Return small configs of a tokenizer, and of the dynamics that go with it."""
    assert method in ("vqvae", "keypoints"), method
    small = TransformerConfig(dim=32, num_layers=1, num_heads=2, mlp_dim=64, context_frames=3)
    if method == "keypoints":
        tokenizer = KeypointsConfig(size, num_keypoints=4, channels=16, num_res_blocks=1)
        return tokenizer, PredictorConfig(transformer=small)
    tokenizer = VqVaeConfig(size, channels=16, num_res_blocks=1, codebook_size=32, latent_dim=8)
    return tokenizer, LlamaConfig(small)


def write_run(
    run: Path,
    dataset: EpisodeDataset,
    controllers: bool = True,
    method: str = "vqvae",
    recordings: bool = False,
) -> Path:
    """Write tokenizer, dynamics and controllers into a run that has its shards.

    method: of the tokenizer, `vqvae` or `keypoints`.  recordings: they remember the dataset.
    """
    learned = recordings_of(dataset) if recordings else None
    torch.manual_seed(0)
    data = DataSpec(dataset.image_size, dataset.actions)
    config, dynamics_config = small_configs(method, dataset.image_size)
    tokenizer = build_tokenizer(config, data)
    frames = torch.from_numpy(dataset.read(0, "frames")).permute(0, 3, 1, 2)
    tokenizer.train()
    for _ in range(3):
        tokenizer.loss(Batch(frames=frames[:, None]))
        with torch.no_grad():
            tokenizer.after_step()
    root = (dataset.folder, dataset.fingerprint)
    data = replace(data, latents=tokenizer.latents)
    first = save(run / "tokenizer", "tokenizer", tokenizer, config, data, root, learned)
    dynamics = build_dynamics(dynamics_config, data)
    second = save(run / "dynamics", "dynamics", dynamics, dynamics_config, data, first, learned)

    policy = PolicyConfig(channels=8, num_keypoints=4, hidden_dim=16)
    wanted: dict[str, Any] = {"controller/bc": policy, "controller": policy} if controllers else {}
    if method == "keypoints":
        wanted["controller/goal_policy"] = GoalPolicyConfig(policy)
    for folder, controller_config in wanted.items():
        controller = build_controller(controller_config, data)
        save(run / folder, "controller", controller, controller_config, data, second, learned)
    return run


def save(
    folder: Path,
    stage: str,
    model: nn.Module,
    config: Any,
    data: DataSpec,
    parent: tuple[Path, str],
    recordings: TrainedOn | None = None,
) -> tuple[Path, str]:
    """Write FOLDER/best.pt; return its path and fingerprint, as a child's parent."""
    assert data.latents is not None
    weights = model.state_dict()
    fingerprint = checkpoint.fingerprint(weights, describe(config))
    path = folder / "best.pt"
    folder.mkdir(parents=True, exist_ok=True)
    fields = checkpoint.describe(config, data, data.latents, data.actions, parent, recordings)
    checkpoint.save(
        path,
        fields
        | {
            "format": checkpoint.FORMAT,
            "stage": stage,
            "model": weights,
            "fingerprint": fingerprint,
            "seconds": 1.5,
        },
    )
    return path, fingerprint
