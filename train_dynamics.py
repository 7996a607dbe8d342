"""Stage 3: learn how actions move the latents.

Reads   RUN/shards and RUN/tokenizer/best.pt; no tokenizer where the method is trained jointly.
Writes  RUN/latents and RUN/teacher, caches, and RUN/dynamics: best.pt, last.pt, log.jsonl,
        tensorboard, images of model rollouts next to true futures.
Try     python train_dynamics.py --run runs/pusht --preset pusht cpu
Next    train_controller.py, play.py
"""

from __future__ import annotations

if __name__ in ("__main__", "__mp_main__"):  # a script, or a worker process of one
    from pipeline.startup import start

    start(__name__)

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch

from data.clips import Clips
from data.io.files import writable_folder
from data.ranges import CheckedConfig, Range
from data.shards.episode_dataset import EpisodeDataset
from kernels import Backend
from models import registry
from models.dynamics.dynamics import Dynamics
from models.method import Validates
from models.registry import DataSpec, MethodConfig
from models.tokenizers.tokenizer import Tokenizer
from pipeline import checkpoint as ckpt
from pipeline.batches.clip_batches import ClipBatches, check_actions
from pipeline.batches.latent_cache import cache_latents
from pipeline.batches.step_dataset import BatchDataset
from pipeline.device import DeviceOption, set_device
from pipeline.inference.load_tokenizer import load_tokenizer
from pipeline.trained_on import TrainedOn, check_parent_recordings, recordings_of
from pipeline.training.train_config import TrainConfig
from pipeline.training.train_step import LossFn
from pipeline.training.trainer import Trainer

Rows = Callable[[Path, EpisodeDataset, Trainer[Dynamics]], dict[str, np.ndarray]]


@dataclass(frozen=True)
class Config(CheckedConfig):
    run: Path = Path("runs/pusht")
    """Folder of the world model; shards and tokenizer are read, dynamics is written."""
    model: MethodConfig = field(default_factory=lambda: registry.default_config("llama"))
    """The method, as the recipe says: for codes a transformer over tokens, for vectors a
    predictor."""
    num_eval_clips: Annotated[int, Range(1, 10**6)] = 64
    """Held-out clips at each validation."""
    event_share: Annotated[float, Range(0, 1)] = 0.0
    """Share of a batch's clips that are drawn of those with a rare reward or a true end."""
    auxiliary: tuple[str, ...] = ()
    """Auxiliary losses on layers, NAME:LAYER:WEIGHT each (docs/how-to/layers.md), such as
    feature_norm:transformer.layers.2:0.01; names are in models/hooks/auxiliary_losses.py."""
    teacher: str = ""
    """A run whose tokenizer gives the target of the auxiliary loss `distill`."""
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            steps=40000, batch_size=64, learning_rate=1e-3, weight_decay=0.05, eval_every=2000
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

    @property
    def settings(self) -> dict[str, Any]:
        """What makes another training of it, besides the method and `train`: plain values."""
        auxiliary = {"auxiliary": list(self.auxiliary), "teacher": self.teacher}
        return {"event_share": self.event_share} | auxiliary


def main(config: Config) -> None:
    set_device(config.device, config.kernels)
    dataset = EpisodeDataset(config.run / "shards")
    method = ckpt.config_to_resume(config.model, config.run / "dynamics", config.restart)
    method = without_absent_heads(method, dataset)
    source = Source.open(config.run, registry.dynamics_class(method), dataset)
    torch.manual_seed(config.train.seed)
    model = registry.build_dynamics(method, source.data)
    if source.tokenizer is not None:
        model.load_codebook(source.tokenizer)
        model.begin_with(source.tokenizer)
    loss, target_rows = open_auxiliary(model, config)
    folder = writable_folder(config.run / "dynamics")
    check_actions(dataset, model.needs)
    train = training_clips(model, dataset)
    check_held_out(model, source)
    trainer = Trainer(
        "dynamics",
        folder,
        model,
        config.train,
        ckpt.describe(
            model.config, source.data, model.latents, model.actions, source.parent,
            source.recordings, config.settings,
        ),
        restart=config.restart,
        data_summary=f"{len(train)} clips of {model.clip_length} frames",
    )  # fmt: skip
    if trainer.finished:
        return trainer.log_finished()
    if source.tokenizer is not None:  # the weights that it resumed may be of an earlier one
        model.load_codebook(source.tokenizer)
    latents = source.encode(config.run / "latents", trainer)
    targets = target_rows(config.run, dataset, trainer)
    clips = ClipBatches(train, model.needs, latents, targets)
    trainer.cache_on_device(clips)
    for batch in trainer.batches(with_events(clips, config.event_share)):
        trainer.step(loss, batch)
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
    recordings: TrainedOn
    """The dataset's training episodes."""

    @staticmethod
    def open(run: Path, method: type[Dynamics], dataset: EpisodeDataset) -> Source:
        data = DataSpec(dataset.image_size, dataset.actions)
        if "latents" not in method.needs:  # trained jointly, from frames
            below = dataset.folder, dataset.fingerprint
            return Source(dataset, None, data, below, recordings_of(dataset))
        tokenizer, parent = load_tokenizer(run)
        path = run / "tokenizer" / "best.pt"
        trained_on = ckpt.data_spec(parent, path)
        dataset.actions.check_same(trained_on.actions, str(dataset.folder), str(path))
        recordings = recordings_of(dataset, parent)
        check_parent_recordings(parent, path, recordings, dataset)
        data = replace(data, latents=tokenizer.latents)
        return Source(dataset, tokenizer, data, (path, parent["fingerprint"]), recordings)

    def encode(self, folder: Path, trainer: Trainer[Dynamics]) -> np.ndarray | None:
        """Latents of all frames, encoded by the main process where they are not there yet."""
        if self.tokenizer is None:
            return None
        tokenizer = self.tokenizer.to(trainer.device)
        with trainer.main_process_first():
            return cache_latents(folder, tokenizer, self.parent[1], self.dataset, trainer.device)


def open_auxiliary(model: Dynamics, config: Config) -> tuple[LossFn, Rows]:
    """The model's loss with the auxiliary ones that are asked for, and what gives their targets."""
    if not config.auxiliary:
        return model.loss, lambda *_: {}
    from pipeline.training.auxiliary import Auxiliary

    compiled = config.train.compile != "no"
    auxiliary = Auxiliary(model, config.auxiliary, config.teacher, compiled)
    return auxiliary.loss, auxiliary.rows


def training_clips(model: Dynamics, dataset: EpisodeDataset) -> Clips:
    """Clips of the training split; over the ends of short episodes, where a method marks them."""
    make = Clips
    if "is_first" in model.needs and dataset.lengths.min() < model.clip_length:
        from data.joined_clips import JoinedClips as make
    return make(dataset, "train", model.clip_length, flag="--model.clip-length")


def with_events(clips: ClipBatches, share: float) -> BatchDataset:
    """Clips of which a share comes to a rare reward or a true end."""
    if not share:
        return clips
    from pipeline.batches.event_clips import EventClips

    return EventClips(clips, share)


def check_held_out(model: Dynamics, source: Source) -> None:
    """Raise ValueError now, not at the first validation, where no episode is long enough for one:
    a clip of the method's own, or the context of a world and a step."""
    flag, length = "--model.clip-length", model.clip_length
    if not isinstance(model, Validates):
        past = source.tokenizer.temporal_context - 1 if source.tokenizer else 0
        flag, length = "--model.transformer.context-frames", model.context + past + 1
    Clips(source.dataset, "validation", length, flag=flag)


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
        tokenizer: Any = source.tokenizer or model  # a joint model is both
        world = World(tokenizer, model, trainer.precision, source.data.actions)
        metrics = validation.validate_world(world, source.dataset, config.num_eval_clips)
        trainer.log_image("rollout", make_grid(validation.rollout_rows(world, source.dataset)))
    return metrics


def without_absent_heads(config: MethodConfig, dataset: EpisodeDataset) -> MethodConfig:
    """Leave the reward head out where there is nothing that it could learn."""
    if any(f.name == "rewards" for f in fields(config)) and not dataset.has("rewards"):  # type: ignore[arg-type]
        return replace(config, rewards=False)  # type: ignore[type-var]
    return config


if __name__ == "__main__":
    from pipeline.cli import run_cli

    run_cli(main, Config, "dynamics")
