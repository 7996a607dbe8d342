"""A run folder as the stages leave it, with models that have learned nothing yet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from data.shards import EpisodeDataset
from models.controllers.goal_policy import GoalPolicyConfig
from models.controllers.policy import PolicyConfig
from models.dynamics.llama import LlamaConfig
from models.dynamics.predictor import PredictorConfig
from models.layers.transformer import TransformerConfig
from models.registry import build_controller, build_dynamics, build_tokenizer, describe
from models.tokenizers.keypoints import KeypointsConfig
from models.tokenizers.vqvae import VqVaeConfig
from pipeline import checkpoint


def codes_or_vectors(method: str, size: tuple[int, int]) -> tuple[Any, Any]:
    """Small configs of a tokenizer and of the dynamics that go with it."""
    small = TransformerConfig(dim=32, num_layers=1, num_heads=2, mlp_dim=64, context_frames=3)
    if method == "goals":
        return KeypointsConfig(
            size, num_keypoints=4, channels=16, num_res_blocks=1
        ), PredictorConfig(small)
    tokenizer = VqVaeConfig(size, channels=16, num_res_blocks=1, codebook_size=32, latent_dim=8)
    return tokenizer, LlamaConfig(small)


def write_run(
    run: Path, recordings: EpisodeDataset, controllers: bool = True, method: str = "codes"
) -> Path:
    """Write tokenizer, dynamics and controllers into a run whose shards are there."""
    torch.manual_seed(0)
    actions = recordings.actions
    config, memory = codes_or_vectors(method, recordings.image_size)
    tokenizer = build_tokenizer(config, actions)
    frames = torch.from_numpy(recordings.read(0, "frames")).permute(0, 3, 1, 2)
    tokenizer.train()
    for _ in range(3):
        tokenizer.loss(frames)
    root = {"path": str(recordings.folder), "fingerprint": recordings.fingerprint}
    first = save(run / "tokenizer", "tokenizer", tokenizer, config, root, recordings)

    dynamics = build_dynamics(memory, tokenizer.latents, actions)
    second = save(run / "dynamics", "dynamics", dynamics, memory, first, recordings, tokenizer)

    policy = PolicyConfig(channels=8, num_keypoints=4, hidden_dim=16)
    wanted: dict[str, Any] = {"controller/cloning": policy, "controller": policy}
    wanted = wanted if controllers else {}
    if method == "goals":
        wanted["controller/goals"] = GoalPolicyConfig(policy)
    for place, policy in wanted.items():
        controller = build_controller(policy, tokenizer.latents, actions)
        save(run / place, "controller", controller, policy, second, recordings, tokenizer)
    return run


def save(
    folder: Path,
    stage: str,
    model: Any,
    config: Any,
    parent: dict[str, Any],
    recordings: EpisodeDataset,
    tokenizer: Any = None,
) -> dict[str, Any]:
    """Write FOLDER/best.pt and give what a child says of its parent."""
    weights, plain = model.state_dict(), describe(config)
    fingerprint = checkpoint.fingerprint(weights, plain)
    path = folder / "best.pt"
    folder.mkdir(parents=True, exist_ok=True)
    described = {
        "format": checkpoint.FORMAT,
        "stage": stage,
        "config": plain,
        "latents": (tokenizer or model).latents.as_dict(),
        "actions": recordings.actions.as_dict(),
        "parent": parent,
        "model": weights,
        "fingerprint": fingerprint,
        "seconds": 1.5,
    }
    checkpoint.save(path, described)
    return {"path": str(path), "fingerprint": fingerprint}
