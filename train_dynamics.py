"""Stage 3: learn how actions move the latents.

Reads   RUN/shards and RUN/tokenizer/best.pt; no tokenizer where the method is trained jointly.
Writes  RUN/latents, a cache, and RUN/dynamics: best.pt, last.pt, log.jsonl, tensorboard, images
        of model rollouts next to true futures.
Try     python train_dynamics.py --run runs/pusht --preset pusht cpu
Next    train_controller.py, play.py
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import kernels
from data.clips import Clips
from data.shards import EpisodeDataset
from kernels import Backend
from models import registry
from models.config import check_positive
from models.dynamics.dynamics import Dynamics
from models.method import Validates
from models.registry import DataSpec, MethodConfig
from models.tokenizers.tokenizer import Tokenizer
from pipeline import checkpoint as ckpt
from pipeline.cli import run_cli
from pipeline.device import pick_precision
from pipeline.inference.load_tokenizer import load_tokenizer
from pipeline.training.clip_batches import ClipBatches
from pipeline.training.latent_cache import cache_latents
from pipeline.training.train_config import TrainConfig
from pipeline.training.trainer import Trainer


@dataclass(frozen=True)
class Config:
    run: Path = Path("runs/pusht")
    """Folder of the world model; shards and tokenizer are read, dynamics is written."""
    model: MethodConfig = field(default_factory=lambda: registry.default_config("llama"))
    """The method, as the recipe says: for codes a transformer over tokens, for vectors a
    predictor."""
    num_eval_clips: int = 64
    """Held-out clips at each validation."""
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            steps=40000, batch_size=64, learning_rate=1e-3, weight_decay=0.05, eval_every=2000
        )
    )
    kernels: Backend = "auto"
    """Run operations as Triton kernels, as PyTorch, or as what was measured faster on this GPU."""
    restart: bool = False
    """Start over, although there is a checkpoint to resume from."""


def main(config: Config) -> None:
    check_positive(config, "--", "num_eval_clips")
    kernels.set_backend(config.kernels)
    dataset = EpisodeDataset(config.run / "shards")
    method = without_absent_heads(config.model, dataset)
    source = Source.open(config.run, registry.dynamics_class(method), dataset)
    torch.manual_seed(config.train.seed)
    model = registry.build_dynamics(method, source.data)
    if source.tokenizer is not None:
        model.load_codebook(source.tokenizer)
    train = Clips(dataset, "train", model.clip_length)
    trainer = Trainer(
        "dynamics",
        config.run / "dynamics",
        model,
        config.train,
        ckpt.describe(model.config, source.data, model.latents, model.actions, source.parent),
        restart=config.restart,
        data_summary=f"{len(train)} clips of {model.clip_length} frames",
    )
    if trainer.finished:
        return trainer.log_finished()
    latents = source.encode(config.run / "latents", trainer)
    clips = ClipBatches(train, model.needs, latents)
    trainer.cache_on_device(clips)
    for batch in trainer.batches(clips):
        trainer.step(model.loss, batch)
        if trainer.every(config.train.eval_every):
            trainer.save_best(validate(config, trainer, source, latents))


@dataclass
class Source:
    """What the model learns from: a dataset, seen through a tokenizer or as it is."""

    dataset: EpisodeDataset
    tokenizer: Tokenizer | None
    data: DataSpec
    parent: tuple[Path, str]
    """Path and fingerprint of what is underneath: the tokenizer, or the shards."""

    @staticmethod
    def open(run: Path, method: type[Dynamics], dataset: EpisodeDataset) -> Source:
        data = DataSpec(dataset.image_size, dataset.actions)
        if "latents" not in method.needs:  # trained jointly, from frames
            return Source(dataset, None, data, (dataset.folder, dataset.fingerprint))
        tokenizer, parent = load_tokenizer(run)
        path = run / "tokenizer" / "best.pt"
        trained_on = ckpt.data_spec(parent)
        dataset.actions.check_same(trained_on.actions, str(dataset.folder), str(path))
        data = replace(data, latents=tokenizer.latents)
        return Source(dataset, tokenizer, data, (path, parent["fingerprint"]))

    def encode(self, folder: Path, trainer: Trainer[Dynamics]) -> np.ndarray | None:
        """Latents of all frames, encoded by the main process where they are not there yet."""
        if self.tokenizer is None:
            return None
        tokenizer = self.tokenizer.to(trainer.device)
        with trainer.main_process_first():
            return cache_latents(folder, tokenizer, self.parent[1], self.dataset, trainer.device)


def validate(
    config: Config, trainer: Trainer[Dynamics], source: Source, latents: np.ndarray | None
) -> dict[str, float]:
    """Validate the method as it says itself, or as a world in an open loop."""
    # what a step of training does not need is not loaded before the first validation
    from evaluation import validation
    from models.world import World
    from pipeline.video import make_grid

    with trainer.ema_model() as model:
        if isinstance(model, Validates):
            return validation.validate_own(
                model, source.dataset, trainer.device, latents, config.num_eval_clips
            )
        precision = pick_precision(trainer.device, config.train.precision)
        tokenizer: Any = source.tokenizer or model  # a joint model is both
        world = World(tokenizer, model, precision, source.data.actions)
        metrics = validation.validate_world(world, source.dataset, config.num_eval_clips)
        trainer.log_image("rollout", make_grid(validation.rollout_rows(world, source.dataset)))
    return metrics


def without_absent_heads(config: MethodConfig, dataset: EpisodeDataset) -> MethodConfig:
    """Leave the reward head out where there is nothing that it could learn."""
    if any(f.name == "rewards" for f in fields(config)) and not dataset.has("rewards"):  # type: ignore[arg-type]
        return replace(config, rewards=False)  # type: ignore[type-var]
    return config


if __name__ == "__main__":
    run_cli(main, Config, "dynamics")
