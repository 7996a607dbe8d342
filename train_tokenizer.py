"""Stage 2: learn to turn frames into latents and back.

Reads   RUN/shards, written by python -m data.preprocess.
Writes  RUN/tokenizer: best.pt, last.pt, log.jsonl, tensorboard, pictures of reconstructions.
Try     python train_tokenizer.py --run runs/pusht --preset pusht cpu
Next    train_dynamics.py
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import kernels
from data.clips import Clips
from data.shards import EpisodeDataset
from evaluation.measures.metrics import (
    code_flip_rate,
    mse,
    patch_change_rate,
    pooled_psnr,
    psnr,
    ssim,
)
from evaluation.measures.sample_clips import sample_clips
from kernels import Kernels
from models.dynamics.predictor import PredictorConfig
from models.layers.transformer import TransformerConfig
from models.registry import build_tokenizer, describe
from models.tokenizers.codes import code_counts, perplexity
from models.tokenizers.frozen_encoder import FrozenEncoderConfig
from models.tokenizers.jepa import JepaConfig
from models.tokenizers.keypoints import KeypointsConfig
from models.tokenizers.vqvae import VqVaeConfig
from pipeline.cli import run_cli as run_stage
from pipeline.pictures import make_grid
from pipeline.training.train_config import TrainConfig
from pipeline.training.trainer import Trainer


@dataclass(frozen=True)
class Config:
    run: Path = Path("runs/pusht")
    """Folder of the world model; its shards are read, its tokenizer is written."""
    model: VqVaeConfig | KeypointsConfig | FrozenEncoderConfig | JepaConfig = field(
        default_factory=VqVaeConfig
    )
    """The method: a VQ-VAE, or what --preset goals (keypoints), dinov2 (frozen) or latent takes."""
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            steps=20000, batch_size=256, learning_rate=1e-3, weight_decay=0.01, eval_every=1000
        )
    )
    kernels: Kernels = "auto"
    """Run operations as Triton kernels, as PyTorch, or as what was measured faster on this GPU."""
    restart: bool = False
    """Begin anew, although there is a checkpoint to go on from."""


def _train(config: Config, **changes: Any) -> Config:
    return replace(config, train=replace(config.train, **changes))


def _model(config: Config, **changes: Any) -> Config:
    return replace(config, model=replace(config.model, **changes))


def _more_steps(config: Config) -> Config:
    train = config.train
    return _train(config, steps=2 * train.steps, eval_every=2 * train.eval_every)


def _minecraft(config: Config) -> Config:
    """64 x 64 pixels as 256 codes of 1024."""
    model = VqVaeConfig(
        downsample=4,
        patch_size=2,
        encoder_kernel=3,
        num_codebooks=1,
        codebook_size=1024,
        latent_dim=256,
    )
    return replace(config, run=Path("runs/minecraft"), model=model)


def _minecraft_high_res(config: Config) -> Config:
    return _model(config, image_size=(128, 128), downsample=8, stem=4)


# What a size means to each method.
SIZES = {
    ("cpu", VqVaeConfig): lambda c: _model(
        _train(c, steps=950, batch_size=64, eval_every=475, save_every=100), num_res_blocks=1
    ),
    ("debug", VqVaeConfig): lambda c: _model(
        _train(c, steps=40, batch_size=16, eval_every=20, save_every=10, warmup_steps=5),
        channels=32, codes=64, latent_dim=8, num_res_blocks=1, vq_start_step=10,
    ),
    ("cpu", KeypointsConfig): lambda c: _train(
        c, steps=1200, batch_size=64, eval_every=600, save_every=100, graph=False
    ),
    ("debug", KeypointsConfig): lambda c: _model(
        _train(
            c, steps=40, batch_size=16, learning_rate=1e-3, eval_every=20, save_every=10,
            warmup_steps=5, graph=False,
        ),
        channels=16, num_keypoints=4, num_res_blocks=1,
    ),
    ("cpu", FrozenEncoderConfig): lambda c: _model(
        _train(c, steps=500, batch_size=32, eval_every=250, save_every=100), seen=56
    ),
    ("cpu", JepaConfig): lambda c: _model(
        _train(c, steps=5000, batch_size=64, eval_every=1000, save_every=200),
        filters=96, hidden=512,
        predictor=PredictorConfig(
            TransformerConfig(dim=128, num_layers=3, num_heads=4, mlp_dim=384, context_frames=3), rewards=False
        ),
        width=64, blocks=2, channels=48, num_slices=256,
    ),
    ("debug", JepaConfig): lambda c: _model(
        _train(c, steps=40, batch_size=16, eval_every=20, save_every=10, warmup_steps=5),
        filters=16, hidden=32,
        predictor=PredictorConfig(
            TransformerConfig(dim=24, num_layers=1, num_heads=2, mlp_dim=48, context_frames=3), rewards=False
        ),
        width=16, channels=16, num_res_blocks=1, num_slices=32,
    ),
    ("debug", FrozenEncoderConfig): lambda c: _model(
        _train(c, steps=6, batch_size=4, eval_every=3, save_every=3, warmup_steps=2),
        channels=16, num_res_blocks=1, seen=28,
    ),
}  # fmt: skip

PRESETS = {
    "pusht": lambda c: _model(c, image_size=(64, 64)),
    "minecraft": _minecraft,
    "minecraft-150m": _minecraft,
    "minecraft debug": lambda c: _model(
        _train(c, steps=1000, batch_size=16, learning_rate=2e-3, eval_every=250),
        downsample=8, stem=8, encoder_kernel=1, channels=192, codebooks=8, codes=256,
        latent_dim=64, vq_start_step=60,
    ),
    "goals": lambda c: _train(
        replace(c, model=KeypointsConfig(c.model.image_size)),
        steps=3000, learning_rate=2.5e-3, warmup_steps=200, eval_every=1500, save_every=500,
        graph=True,
    ),
    "dinov2": lambda c: replace(c, model=FrozenEncoderConfig(c.model.image_size)),
    "latent": lambda c: replace(c, model=JepaConfig(c.model.image_size)),
    "high_res": lambda c: _model(c, image_size=(96, 96)),
    "minecraft high_res": _minecraft_high_res,
    "minecraft-150m high_res": _minecraft_high_res,
    "tokens": lambda c: c,
    "cpu": lambda c: SIZES["cpu", type(c.model)](c),
    "hour": lambda c: _more_steps(SIZES["cpu", type(c.model)](c)),
    "debug": lambda c: SIZES["debug", type(c.model)](c),
}  # fmt: skip


def main(config: Config) -> None:
    kernels.choose(config.kernels)
    dataset = EpisodeDataset(config.run / "shards")
    if dataset.image_size != config.model.image_size:
        raise ValueError(
            f"{config.run / 'shards'} holds frames of {dataset.image_size} pixels, but the "
            f"model is for {config.model.image_size}; give --model.image-size "
            f"{dataset.image_size[0]} {dataset.image_size[1]}, or preprocess with another "
            f"--resolution"
        )
    held_out = Clips(dataset, "validation", clip_length=2)

    torch.manual_seed(config.train.seed)
    model = build_tokenizer(config.model, dataset.actions)
    clips = Clips(dataset, "train", clip_length=model.clip)
    trainer = Trainer(
        "tokenizer",
        config.run / "tokenizer",
        model,
        config.train,
        metadata={
            "config": describe(model.config),
            "latents": model.latents.as_dict(),
            "actions": dataset.actions.as_dict(),
            "parent": {"path": str(dataset.folder), "fingerprint": dataset.fingerprint},
        },
        restart=config.restart,
        data_summary=f"{len(clips)} clips of {model.clip} frame(s) of {dataset.image_size[0]} x "
        f"{dataset.image_size[1]}",
    )
    trainer.cache_on_device(clips)
    for _, clip in trainer.batches(clips):
        trainer.train_step(clip.frames, dataset.actions.normalize(clip.actions))
        if trainer.every(config.train.eval_every):
            with trainer.ema_model() as ema_model:
                metrics, images = validate(ema_model, held_out, trainer.device)
            trainer.log_image("reconstructions", make_grid(images))
            trainer.save_best(metrics["psnr"], metrics)


def validate(
    model: Any, held_out: Clips, device: torch.device, num_clips: int = 256
) -> tuple[dict[str, float], list[Tensor]]:
    """Measure reconstruction and flicker on pairs of consecutive frames; show eight of them."""
    indices, _ = sample_clips(held_out, num_clips, seed=0)
    truth = held_out.batch(indices).frames.to(device)  # (B, 2, 3, H, W)
    codes = torch.cat([model.encode(part) for part in truth.flatten(0, 1).split(128)])
    reconstructed = torch.cat([model.decode(part) for part in codes.split(128)])
    original, reconstruction = truth[:, 0], reconstructed.view_as(truth)[:, 0]
    metrics = {
        "psnr": float(psnr(original, reconstruction).clamp(max=60).mean()),
        "psnr_pooled": pooled_psnr(mse(original, reconstruction)),
        "ssim": float(ssim(original, reconstruction).mean()),
    }
    if model.latents.kind == "discrete":
        counts = code_counts(codes, model.latents)
        metrics |= {
            "patches_changing": float(patch_change_rate(truth, model.latents.grid)),
            "codes_changing": float(code_flip_rate(codes.view(len(truth), 2, -1))),
            "codes_used": float((counts > 0).sum()),
            "perplexity": float(perplexity(counts)),
        }
    return metrics, [original[:8], reconstruction[:8]]


if __name__ == "__main__":
    run_stage(main, Config, PRESETS)
