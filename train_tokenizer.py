"""Stage 2: learn to encode frames as latents, and to decode them.

Reads   RUN/shards, written by preprocess.py.
Writes  RUN/tokenizer: best.pt, last.pt, log.jsonl, tensorboard, images of reconstructions; and
        RUN/latents, a cache, where the encoder stays as it is.
Try     python train_tokenizer.py --run runs/pusht --preset pusht cpu
Next    train_dynamics.py
"""

from __future__ import annotations

if __name__ in ("__main__", "__mp_main__"):  # a script, or a worker process of one
    from pipeline.startup import start

    start(__name__)

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch

from data.clips import Clips
from data.io.files import writable_folder
from data.ranges import CheckedConfig, Range
from data.shards.episode_dataset import EpisodeDataset
from evaluation import validation
from kernels import Backend
from models import registry
from models.method import Validates
from models.registry import DataSpec, MethodConfig
from models.tokenizers.tokenizer import Tokenizer
from pipeline import checkpoint as ckpt
from pipeline.batches.clip_batches import ClipBatches, check_actions
from pipeline.batches.latent_cache import cache_latents
from pipeline.device import DeviceOption, set_device
from pipeline.trained_on import recordings_of
from pipeline.training.train_config import TrainConfig
from pipeline.training.trainer import Trainer
from pipeline.video import make_grid


@dataclass(frozen=True)
class Config(CheckedConfig):
    run: Path = Path("runs/pusht")
    """Folder of the world model; its shards are read, its tokenizer is written."""
    model: MethodConfig = field(default_factory=lambda: registry.default_config("vqvae"))
    """The method, as the recipe says: a VQ-VAE, keypoints, a frozen encoder, a joint embedding."""
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            steps=20000, batch_size=256, learning_rate=1e-3, weight_decay=0.01, eval_every=1000
        )
    )
    device: DeviceOption = "auto"
    """Where to run: a CUDA GPU if there is one, else Apple's (mps), else the CPU."""
    kernels: Backend = "auto"
    """Run operations as Triton kernels, as PyTorch, or as what was measured faster on this GPU."""
    live: Annotated[int, Range(0, 65535)] = 0
    """Port of a page that follows the training at 127.0.0.1; 0 is no page."""
    restart: bool = False
    """Start over, although there is a checkpoint to resume from."""


def main(config: Config) -> None:
    set_device(config.device, config.kernels)
    dataset = EpisodeDataset(config.run / "shards")
    data = DataSpec(dataset.image_size, dataset.actions)
    torch.manual_seed(config.train.seed)
    method = ckpt.config_to_resume(config.model, config.run / "tokenizer", config.restart)
    model = registry.build_tokenizer(method, data)
    check_image_size(config, dataset.image_size, model.image_size)
    folder = writable_folder(config.run / "tokenizer")
    train = Clips(dataset, "train", model.clip_length, flag="--model.clip-length")
    check_actions(dataset, model.needs)
    validation.check_held_out(model, dataset)
    trainer = Trainer(
        "tokenizer",
        folder,
        model,
        config.train,
        ckpt.describe(
            model.config,
            data,
            model.latents,
            dataset.actions,
            parent=(dataset.folder, dataset.fingerprint),
            recordings=recordings_of(dataset),
        ),
        restart=config.restart,
        data_summary=f"{len(train)} clips of {model.clip_length} frame(s) of "
        f"{dataset.image_size[0]} x {dataset.image_size[1]}",
    )
    if trainer.finished:
        return trainer.log_finished()
    latents = None
    if "latents" in model.needs:
        with trainer.ema_model() as encoder, trainer.main_process_first():
            latents = cache_latents(config.run / "latents", encoder, "", dataset, trainer.device)
    clips = ClipBatches(train, model.needs, latents)
    trainer.cache_on_device(clips)
    for batch in trainer.batches(clips):
        trainer.step(model.loss, batch)
        if trainer.every(config.train.eval_every):
            trainer.save_best(validate(trainer, dataset))


def validate(trainer: Trainer[Tokenizer], dataset: EpisodeDataset) -> dict[str, float]:
    """Validate the method as it says itself, and by what a decoder gives back."""
    metrics: dict[str, float] = {}
    with trainer.ema_model() as model:
        if isinstance(model, Validates):
            metrics |= validation.validate_own(model, dataset, trainer.device)
        if model.has_decoder or not metrics:
            measured, images = validation.validate_tokenizer(model, dataset, trainer.device)
            metrics |= measured
            trainer.log_image("reconstructions", make_grid(images))
    return metrics


def check_image_size(config: Config, shards: tuple[int, int], model: tuple[int, int]) -> None:
    if shards != model:
        raise ValueError(
            f"{config.run / 'shards'} holds frames of {shards} pixels, but the model is for "
            f"{model}; give --model.image-size {shards[0]} {shards[1]}, or preprocess with another "
            f"--resolution"
        )


if __name__ == "__main__":
    from pipeline.cli import run_cli

    run_cli(main, Config, "tokenizer")
