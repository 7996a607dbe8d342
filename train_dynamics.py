"""Stage 3: learn how actions move the latents.

Reads   RUN/shards and RUN/tokenizer/best.pt.
Writes  RUN/latents, a cache, and RUN/dynamics: best.pt, last.pt, log.jsonl, tensorboard, pictures
        of imagined beside true futures.
Try     python train_dynamics.py --run runs/pusht --preset pusht cpu
Next    train_controller.py, play.py
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch

import kernels
from data.clips import Clips
from data.shards import EpisodeDataset
from evaluation.measures.open_loop import HORIZONS, imagine, open_loop
from evaluation.measures.sample_clips import sample_clips
from kernels import Kernels
from models.config import check_positive
from models.dynamics.dynamics import Dynamics
from models.dynamics.llama import LlamaConfig
from models.dynamics.predictor import PredictorConfig
from models.layers.transformer import TransformerConfig
from models.registry import build_dynamics, describe
from models.world import World
from pipeline.checkpoint import action_spec
from pipeline.cli import run_cli as run_stage
from pipeline.device import pick_precision
from pipeline.inference.load import load_tokenizer
from pipeline.pictures import make_grid
from pipeline.training.latents import LatentClips, cache_latents
from pipeline.training.train_config import TrainConfig
from pipeline.training.trainer import Trainer


@dataclass(frozen=True)
class Config:
    run: Path = Path("runs/pusht")
    """Folder of the world model; shards and tokenizer are read, dynamics is written."""
    model: LlamaConfig | PredictorConfig = field(default_factory=LlamaConfig)
    """The method: for codes a transformer over tokens, for vectors (--preset goals) a predictor."""
    clip_length: int = 8
    """Frames of a training clip."""
    num_eval_clips: int = 64
    """Held-out clips at each validation."""
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            steps=40000, batch_size=64, learning_rate=1e-3, weight_decay=0.05, eval_every=2000
        )
    )
    kernels: Kernels = "auto"
    """Run operations as Triton kernels, as PyTorch, or as what was measured faster on this GPU."""
    restart: bool = False
    """Begin anew, although there is a checkpoint to go on from."""


def _train(config: Config, **changes: Any) -> Config:
    return replace(config, train=replace(config.train, **changes))


def _transformer(config: Config, **changes: Any) -> Config:
    model = replace(config.model, transformer=replace(config.model.transformer, **changes))
    return replace(config, model=model)


def _minecraft(config: Config) -> Config:
    """24 layers, 576 wide: 97 M parameters, over 256 codes a frame."""
    transformer = TransformerConfig(
        dim=576,
        num_layers=24,
        num_heads=9,
        mlp_dim=1536,
        context_frames=8,
        activation_checkpointing=True,
    )
    # in a view that turns most codes change, and there is nothing rare to be made heavier
    model = LlamaConfig(transformer, changed_token_weight=1.0)
    train = replace(
        config.train, batch_size=32, grad_accum_steps=4, learning_rate=3e-4, steps=100_000
    )
    return replace(config, run=Path("runs/minecraft"), model=model, clip_length=12, train=train)


INCOMPATIBLE_PRESETS = (
    "--preset tokens foretells codes one by one, but --preset goals, dinov2 and latent have "
    "vectors in their place; leave out the one or the other"
)


def _autoregressive(config: Config) -> Config:
    if not isinstance(config.model, LlamaConfig):
        raise ValueError(INCOMPATIBLE_PRESETS)
    return replace(config, model=replace(config.model, decoding="token"))


def _vectors(config: Config) -> Config:
    if isinstance(config.model, LlamaConfig) and config.model.decoding == "token":
        raise ValueError(INCOMPATIBLE_PRESETS)
    return replace(config, model=PredictorConfig(), clip_length=21)


def _more_steps(config: Config) -> Config:
    train = config.train
    return _train(config, steps=3 * train.steps, eval_every=3 * train.eval_every)


# What a size means to each method.
SIZES = {
    ("pusht", LlamaConfig): lambda c: _transformer(c, width=384, layers=8, num_heads=6, hidden=1024),
    ("pusht", PredictorConfig): lambda c: c,
    ("cpu", LlamaConfig): lambda c: _train(
        _transformer(replace(c, frames=6), width=128, layers=6, num_heads=2, hidden=384, context=3),
        steps=900, batch_size=16, learning_rate=2e-3, eval_every=450, save_every=100,
    ),
    ("cpu", PredictorConfig): lambda c: _train(
        _transformer(c, layers=4, dropout=0.0), steps=1800, batch_size=128, learning_rate=1.5e-3,
        eval_every=900, save_every=100, graph=False,
    ),
    ("debug", LlamaConfig): lambda c: _train(
        _transformer(
            replace(c, frames=4, windows=4), width=32, layers=2, num_heads=2, hidden=64, context=3
        ),
        steps=40, batch_size=4, eval_every=20, save_every=10, warmup_steps=5,
    ),
    ("debug", PredictorConfig): lambda c: _train(
        _transformer(
            replace(c, frames=7, windows=4, model=replace(c.model, frameskip=2)),
            width=32, layers=2, num_heads=2, hidden=64, context=2,
        ),
        steps=40, batch_size=4, learning_rate=1e-3, eval_every=20, save_every=10, warmup_steps=5,
        graph=False,
    ),
}  # fmt: skip

PRESETS = {
    "minecraft": _minecraft,
    "minecraft-150m": lambda c: _transformer(_minecraft(c), hidden=2816),
    "minecraft debug": lambda c: _train(
        _transformer(
            replace(c, frames=5, windows=32), width=128, layers=4, num_heads=2, hidden=384, context=3,
            activation_checkpointing=False,
        ),
        steps=240, batch_size=16, grad_accum_steps=1, learning_rate=2e-3, eval_every=80,
        save_every=40,
    ),
    "pusht": lambda c: SIZES["pusht", type(c.model)](c),
    "goals": lambda c: _train(
        _transformer(_vectors(c), layers=4, dropout=0.0),
        steps=6000, batch_size=256, learning_rate=1.5e-3, eval_every=3000, save_every=500,
        graph=True,
    ),
    "dinov2": _vectors,
    "latent": _vectors,
    "cpu": lambda c: SIZES["cpu", type(c.model)](c),
    "hour": lambda c: _more_steps(SIZES["cpu", type(c.model)](c)),
    "high_res": lambda c: c,
    "tokens": _autoregressive,
    "debug": lambda c: SIZES["debug", type(c.model)](c),
}  # fmt: skip


def main(config: Config) -> None:
    check(config)
    kernels.choose(config.kernels)
    dataset = EpisodeDataset(config.run / "shards")
    tokenizer, tokenizer_checkpoint = load_tokenizer(config.run)
    dataset.actions.check_same(
        action_spec(tokenizer_checkpoint),
        str(dataset.folder),
        str(config.run / "tokenizer" / "best.pt"),
    )
    config = _with_heads(config, dataset)
    torch.manual_seed(config.train.seed)
    model = build_dynamics(config.model, tokenizer.latents, dataset.actions)
    model.load_codebook(tokenizer)
    train = Clips(dataset, "train", config.clip_length)
    held_out = Clips(dataset, "validation", model.context + max(HORIZONS))

    trainer = Trainer(
        "dynamics",
        config.run / "dynamics",
        model,
        config.train,
        metadata={
            "config": describe(config.model),
            "latents": tokenizer.latents.as_dict(),
            "actions": dataset.actions.as_dict(),
            "parent": {
                "path": str(config.run / "tokenizer" / "best.pt"),
                "fingerprint": tokenizer_checkpoint["fingerprint"],
            },
        },
        restart=config.restart,
        data_summary=f"{len(train)} clips of {config.clip_length} frames",
    )
    if trainer.finished:
        return trainer.log_finished()
    tokenizer = tokenizer.to(trainer.device)
    with trainer.main_process_first():
        latents = cache_latents(
            config.run / "latents",
            tokenizer,
            tokenizer_checkpoint["fingerprint"],
            dataset,
            trainer.device,
        )
    clips = LatentClips(train, latents)
    trainer.cache_on_device(clips)
    for _, clip in trainer.batches(clips):
        trainer.train_step(clip.latents, clip.actions, clip.rewards, clip.continues)
        if trainer.every(config.train.eval_every):
            with trainer.ema_model() as ema_model:
                precision = pick_precision(trainer.device, config.train.precision)
                world = World(tokenizer, cast(Dynamics, ema_model), precision)
                metrics = validate(world, held_out, config.num_eval_clips)
                trainer.log_image("imagined", rollout_image(world, held_out))
            trainer.save_best(metrics["psnr"], metrics)


def check(config: Config) -> None:
    """Refuse, before anything is read, what nothing can be learnt from."""
    if config.clip_length < 2:
        raise ValueError(
            f"--frames {config.clip_length} leaves nothing to foretell; a clip has 2 frames or more"
        )
    check_positive(config, "--", "windows")


def _with_heads(config: Config, dataset: EpisodeDataset) -> Config:
    """Leave the reward head out where there is nothing that it could learn."""
    rewards = config.model.rewards and dataset.has("rewards")
    return replace(config, model=replace(config.model, rewards=rewards))


def validate(world: World, held_out: Clips, num_clips: int) -> dict[str, float]:
    """Give the open-loop figures that best.pt is chosen by: `psnr` is the mean over horizons."""
    open_loop_metrics = open_loop(world, held_out, HORIZONS, num_clips=num_clips)
    index_of = {h: i for i, h in enumerate(open_loop_metrics["horizons"])}
    metrics = {"psnr": sum(open_loop_metrics["psnr"]) / len(HORIZONS)}
    for horizon in (1, 4, 8, 16):
        metrics[f"psnr_{horizon}"] = open_loop_metrics["psnr"][index_of[horizon]]
    metrics["copy_psnr_8"] = open_loop_metrics["copy_last_psnr"][index_of[8]]
    metrics["delta_psnr_4"] = open_loop_metrics["delta_psnr"][index_of[4]]
    return metrics


def rollout_image(world: World, held_out: Clips, num_clips: int = 3) -> Any:
    """Show true futures, and below each what the world imagines."""
    indices, _ = sample_clips(held_out, num_clips, seed=0)
    clip = held_out.batch(indices)
    context = world.context
    predicted = imagine(world, clip.frames, clip.actions, context, list(HORIZONS))
    truth = clip.frames[:, [context - 1 + h for h in HORIZONS]]
    return make_grid([row for pair in zip(truth, predicted, strict=True) for row in pair])


if __name__ == "__main__":
    run_stage(main, Config, PRESETS)
