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
from data.shards import Recordings
from evaluation.measures.metrics import (
    codes_changing,
    mse,
    patches_changing,
    pooled_psnr,
    psnr,
    ssim,
)
from evaluation.measures.sample_clips import spread_windows
from kernels import Kernels
from models.dynamics.predictor import PredictorConfig
from models.layers.transformer import TransformerConfig
from models.registry import build_tokenizer, describe
from models.tokenizers.codes import code_counts, perplexity
from models.tokenizers.frozen_encoder import FrozenConfig
from models.tokenizers.jepa import LatentConfig
from models.tokenizers.keypoints import KeypointsConfig
from models.tokenizers.vqvae import VqVaeConfig
from pipeline.cli import run as run_stage
from pipeline.pictures import grid
from pipeline.training.train_config import TrainConfig
from pipeline.training.trainer import Run


@dataclass(frozen=True)
class Config:
    run: Path = Path("runs/pusht")
    """Folder of the world model; its shards are read, its tokenizer is written."""
    model: VqVaeConfig | KeypointsConfig | FrozenConfig | LatentConfig = field(
        default_factory=VqVaeConfig
    )
    """The method: a VQ-VAE, or what --preset goals (keypoints), dinov2 (frozen) or latent takes."""
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            steps=20000, batch_size=256, learning_rate=1e-3, weight_decay=0.01, evaluate_every=1000
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


def _longer(config: Config) -> Config:
    train = config.train
    return _train(config, steps=2 * train.steps, evaluate_every=2 * train.evaluate_every)


def _minecraft(config: Config) -> Config:
    """64 x 64 pixels as 256 codes of 1024."""
    model = VqVaeConfig(
        downsample=4, stem=2, encoder_kernel=3, codebooks=1, codes=1024, code_width=256
    )
    return replace(config, run=Path("runs/minecraft"), model=model)


def _minecraft_high_res(config: Config) -> Config:
    return _model(config, image_size=(128, 128), downsample=8, stem=4)


# What a size means to each method.
SIZES = {
    ("cpu", VqVaeConfig): lambda c: _model(
        _train(c, steps=950, batch_size=64, evaluate_every=475, save_every=100), depth=1
    ),
    ("debug", VqVaeConfig): lambda c: _model(
        _train(c, steps=40, batch_size=16, evaluate_every=20, save_every=10, warmup=5),
        channels=32, codes=64, code_width=8, depth=1, continuous_steps=10,
    ),
    ("cpu", KeypointsConfig): lambda c: _train(
        c, steps=1200, batch_size=64, evaluate_every=600, save_every=100, graph=False
    ),
    ("debug", KeypointsConfig): lambda c: _model(
        _train(
            c, steps=40, batch_size=16, learning_rate=1e-3, evaluate_every=20, save_every=10,
            warmup=5, graph=False,
        ),
        channels=16, keypoints=4, depth=1,
    ),
    ("cpu", FrozenConfig): lambda c: _model(
        _train(c, steps=500, batch_size=32, evaluate_every=250, save_every=100), seen=56
    ),
    ("cpu", LatentConfig): lambda c: _model(
        _train(c, steps=5000, batch_size=64, evaluate_every=1000, save_every=200),
        filters=96, hidden=512,
        predictor=PredictorConfig(
            TransformerConfig(width=128, layers=3, heads=4, hidden=384, context=3), rewards=False
        ),
        width=64, blocks=2, channels=48, slices=256,
    ),
    ("debug", LatentConfig): lambda c: _model(
        _train(c, steps=40, batch_size=16, evaluate_every=20, save_every=10, warmup=5),
        filters=16, hidden=32,
        predictor=PredictorConfig(
            TransformerConfig(width=24, layers=1, heads=2, hidden=48, context=3), rewards=False
        ),
        width=16, channels=16, depth=1, slices=32,
    ),
    ("debug", FrozenConfig): lambda c: _model(
        _train(c, steps=6, batch_size=4, evaluate_every=3, save_every=3, warmup=2),
        channels=16, depth=1, seen=28,
    ),
}  # fmt: skip

PRESETS = {
    "pusht": lambda c: _model(c, image_size=(64, 64)),
    "minecraft": _minecraft,
    "minecraft-150m": _minecraft,
    "minecraft debug": lambda c: _model(
        _train(c, steps=1000, batch_size=16, learning_rate=2e-3, evaluate_every=250),
        downsample=8, stem=8, encoder_kernel=1, channels=192, codebooks=8, codes=256,
        code_width=64, continuous_steps=60,
    ),
    "goals": lambda c: _train(
        replace(c, model=KeypointsConfig(c.model.image_size)),
        steps=3000, learning_rate=2.5e-3, warmup=200, evaluate_every=1500, save_every=500,
        graph=True,
    ),
    "dinov2": lambda c: replace(c, model=FrozenConfig(c.model.image_size)),
    "latent": lambda c: replace(c, model=LatentConfig(c.model.image_size)),
    "high_res": lambda c: _model(c, image_size=(96, 96)),
    "minecraft high_res": _minecraft_high_res,
    "minecraft-150m high_res": _minecraft_high_res,
    "tokens": lambda c: c,
    "cpu": lambda c: SIZES["cpu", type(c.model)](c),
    "hour": lambda c: _longer(SIZES["cpu", type(c.model)](c)),
    "debug": lambda c: SIZES["debug", type(c.model)](c),
}  # fmt: skip


def main(config: Config) -> None:
    kernels.choose(config.kernels)
    recordings = Recordings(config.run / "shards")
    if recordings.image_size != config.model.image_size:
        raise ValueError(
            f"{config.run / 'shards'} holds frames of {recordings.image_size} pixels, but the "
            f"model is for {config.model.image_size}; give --model.image-size "
            f"{recordings.image_size[0]} {recordings.image_size[1]}, or preprocess with another "
            f"--resolution"
        )
    held_out = Clips(recordings, "validation", frames=2)

    torch.manual_seed(config.train.seed)
    model = build_tokenizer(config.model, recordings.actions)
    clips = Clips(recordings, "train", frames=model.clip)
    run = Run(
        "tokenizer",
        config.run / "tokenizer",
        model,
        config.train,
        identity={
            "config": describe(model.config),
            "latents": model.latents.as_dict(),
            "actions": recordings.actions.as_dict(),
            "parent": {"path": str(recordings.folder), "fingerprint": recordings.fingerprint},
        },
        restart=config.restart,
        data=f"{len(clips)} clips of {model.clip} frame(s) of {recordings.image_size[0]} x "
        f"{recordings.image_size[1]}",
    )
    run.keep_near(clips)
    for _, clip in run.batches(clips):
        run.descend(clip.frames, recordings.actions.normalize(clip.actions))
        if run.due(config.train.evaluate_every):
            with run.averaged() as average:
                figures, picture = validate(average, held_out, run.device)
            run.picture("reconstructions", grid(picture))
            run.keep_best(figures["psnr"], figures)


def validate(
    model: Any, held_out: Clips, device: torch.device, windows: int = 256
) -> tuple[dict[str, float], list[Tensor]]:
    """Measure reconstruction and flicker on pairs of consecutive frames; show eight of them."""
    chosen, _ = spread_windows(held_out, windows, seed=0)
    truth = held_out.batch(chosen).frames.to(device)  # (B, 2, 3, H, W)
    codes = torch.cat([model.encode(part) for part in truth.flatten(0, 1).split(128)])
    drawn = torch.cat([model.decode(part) for part in codes.split(128)])
    first, again = truth[:, 0], drawn.view_as(truth)[:, 0]
    figures = {
        "psnr": float(psnr(first, again).clamp(max=60).mean()),
        "psnr_pooled": pooled_psnr(mse(first, again)),
        "ssim": float(ssim(first, again).mean()),
    }
    if model.latents.kind == "discrete":
        counts = code_counts(codes, model.latents)
        figures |= {
            "patches_changing": float(patches_changing(truth, model.latents.grid)),
            "codes_changing": float(codes_changing(codes.view(len(truth), 2, -1))),
            "codes_used": float((counts > 0).sum()),
            "perplexity": float(perplexity(counts)),
        }
    return figures, [first[:8], again[:8]]


if __name__ == "__main__":
    run_stage(main, Config, PRESETS)
