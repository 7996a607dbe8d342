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
from data.shards import Recordings
from evaluation.measures.open_loop import HORIZONS, imagine, open_loop
from evaluation.measures.sample_clips import spread_windows
from kernels import Kernels
from models.config import start_at_one
from models.dynamics.dynamics import Dynamics
from models.dynamics.llama import LlamaConfig
from models.dynamics.predictor import PredictorConfig
from models.layers.transformer import TransformerConfig
from models.registry import build_dynamics, describe
from models.world import World
from pipeline.checkpoint import action_spec
from pipeline.cli import run as run_stage
from pipeline.device import pick_precision
from pipeline.inference.load import load_tokenizer
from pipeline.pictures import grid
from pipeline.training.latents import LatentClips, cache_latents
from pipeline.training.train_config import TrainConfig
from pipeline.training.trainer import Run


@dataclass(frozen=True)
class Config:
    run: Path = Path("runs/pusht")
    """Folder of the world model; shards and tokenizer are read, dynamics is written."""
    model: LlamaConfig | PredictorConfig = field(default_factory=LlamaConfig)
    """The method: for codes a transformer over tokens, for vectors (--preset goals) a predictor."""
    frames: int = 8
    """Frames of a training clip."""
    windows: int = 64
    """Held-out clips at each validation."""
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            steps=40000, batch_size=64, learning_rate=1e-3, weight_decay=0.05, evaluate_every=2000
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
        width=576, layers=24, heads=9, hidden=1536, context=8, recompute=True
    )
    # in a view that turns most codes change, and there is nothing rare to be made heavier
    model = LlamaConfig(transformer, change_weight=1.0)
    train = replace(config.train, batch_size=32, accumulate=4, learning_rate=3e-4, steps=100_000)
    return replace(config, run=Path("runs/minecraft"), model=model, frames=12, train=train)


NOT_BOTH = (
    "--preset tokens foretells codes one by one, but --preset goals, dinov2 and latent have "
    "vectors in their place; leave out the one or the other"
)


def _tokens(config: Config) -> Config:
    if not isinstance(config.model, LlamaConfig):
        raise ValueError(NOT_BOTH)
    return replace(config, model=replace(config.model, decoding="token"))


def _vectors(config: Config) -> Config:
    if isinstance(config.model, LlamaConfig) and config.model.decoding == "token":
        raise ValueError(NOT_BOTH)
    return replace(config, model=PredictorConfig(), frames=21)


def _longer(config: Config) -> Config:
    train = config.train
    return _train(config, steps=3 * train.steps, evaluate_every=3 * train.evaluate_every)


# What a size means to each method.
SIZES = {
    ("pusht", LlamaConfig): lambda c: _transformer(c, width=384, layers=8, heads=6, hidden=1024),
    ("pusht", PredictorConfig): lambda c: c,
    ("cpu", LlamaConfig): lambda c: _train(
        _transformer(replace(c, frames=6), width=128, layers=6, heads=2, hidden=384, context=3),
        steps=900, batch_size=16, learning_rate=2e-3, evaluate_every=450, save_every=100,
    ),
    ("cpu", PredictorConfig): lambda c: _train(
        _transformer(c, layers=4, dropout=0.0), steps=1800, batch_size=128, learning_rate=1.5e-3,
        evaluate_every=900, save_every=100, graph=False,
    ),
    ("debug", LlamaConfig): lambda c: _train(
        _transformer(
            replace(c, frames=4, windows=4), width=32, layers=2, heads=2, hidden=64, context=3
        ),
        steps=40, batch_size=4, evaluate_every=20, save_every=10, warmup=5,
    ),
    ("debug", PredictorConfig): lambda c: _train(
        _transformer(
            replace(c, frames=7, windows=4, model=replace(c.model, skip=2)),
            width=32, layers=2, heads=2, hidden=64, context=2,
        ),
        steps=40, batch_size=4, learning_rate=1e-3, evaluate_every=20, save_every=10, warmup=5,
        graph=False,
    ),
}  # fmt: skip

PRESETS = {
    "minecraft": _minecraft,
    "minecraft-150m": lambda c: _transformer(_minecraft(c), hidden=2816),
    "minecraft debug": lambda c: _train(
        _transformer(
            replace(c, frames=5, windows=32), width=128, layers=4, heads=2, hidden=384, context=3,
            recompute=False,
        ),
        steps=240, batch_size=16, accumulate=1, learning_rate=2e-3, evaluate_every=80,
        save_every=40,
    ),
    "pusht": lambda c: SIZES["pusht", type(c.model)](c),
    "goals": lambda c: _train(
        _transformer(_vectors(c), layers=4, dropout=0.0),
        steps=6000, batch_size=256, learning_rate=1.5e-3, evaluate_every=3000, save_every=500,
        graph=True,
    ),
    "dinov2": _vectors,
    "latent": _vectors,
    "cpu": lambda c: SIZES["cpu", type(c.model)](c),
    "hour": lambda c: _longer(SIZES["cpu", type(c.model)](c)),
    "high_res": lambda c: c,
    "tokens": _tokens,
    "debug": lambda c: SIZES["debug", type(c.model)](c),
}  # fmt: skip


def main(config: Config) -> None:
    check(config)
    kernels.choose(config.kernels)
    recordings = Recordings(config.run / "shards")
    tokenizer, parent = load_tokenizer(config.run)
    recordings.actions.check_same(
        action_spec(parent), str(recordings.folder), str(config.run / "tokenizer" / "best.pt")
    )
    config = _with_heads(config, recordings)
    torch.manual_seed(config.train.seed)
    model = build_dynamics(config.model, tokenizer.latents, recordings.actions)
    model.adopt(tokenizer)
    train = Clips(recordings, "train", config.frames)
    held_out = Clips(recordings, "validation", model.context + max(HORIZONS))

    run = Run(
        "dynamics",
        config.run / "dynamics",
        model,
        config.train,
        identity={
            "config": describe(config.model),
            "latents": tokenizer.latents.as_dict(),
            "actions": recordings.actions.as_dict(),
            "parent": {
                "path": str(config.run / "tokenizer" / "best.pt"),
                "fingerprint": parent["fingerprint"],
            },
        },
        restart=config.restart,
        data=f"{len(train)} clips of {config.frames} frames",
    )
    if run.done:
        return run.say_done()
    tokenizer = tokenizer.to(run.device)
    with run.first_on_main():
        latents = cache_latents(
            config.run / "latents", tokenizer, parent["fingerprint"], recordings, run.device
        )
    clips = LatentClips(train, latents)
    run.keep_near(clips)
    for _, clip in run.batches(clips):
        run.descend(clip.latents, clip.actions, clip.rewards, clip.continues)
        if run.due(config.train.evaluate_every):
            with run.averaged() as average:
                precision = pick_precision(run.device, config.train.precision)
                world = World(tokenizer, cast(Dynamics, average), precision)
                figures = validate(world, held_out, config.windows)
                run.picture("imagined", picture(world, held_out))
            run.keep_best(figures["psnr"], figures)


def check(config: Config) -> None:
    """Refuse, before anything is read, what nothing can be learnt from."""
    if config.frames < 2:
        raise ValueError(
            f"--frames {config.frames} leaves nothing to foretell; a clip has 2 frames or more"
        )
    start_at_one(config, "--", "windows")


def _with_heads(config: Config, recordings: Recordings) -> Config:
    """Leave the reward head out where there is nothing that it could learn."""
    rewards = config.model.rewards and recordings.has("rewards")
    return replace(config, model=replace(config.model, rewards=rewards))


def validate(world: World, held_out: Clips, windows: int) -> dict[str, float]:
    """Give the open-loop figures that best.pt is chosen by: `psnr` is the mean over horizons."""
    measured = open_loop(world, held_out, HORIZONS, windows=windows)
    at = {h: i for i, h in enumerate(measured["horizons"])}
    figures = {"psnr": sum(measured["psnr"]) / len(HORIZONS)}
    for horizon in (1, 4, 8, 16):
        figures[f"psnr_{horizon}"] = measured["psnr"][at[horizon]]
    figures["copy_psnr_8"] = measured["copy_last_psnr"][at[8]]
    figures["delta_psnr_4"] = measured["delta_psnr"][at[4]]
    return figures


def picture(world: World, held_out: Clips, clips: int = 3) -> Any:
    """Show true futures, and below each what the world imagines."""
    chosen, _ = spread_windows(held_out, clips, seed=0)
    clip = held_out.batch(chosen)
    context = world.context
    imagined = imagine(world, clip.frames, clip.actions, context, list(HORIZONS))
    truth = clip.frames[:, [context - 1 + h for h in HORIZONS]]
    return grid([row for pair in zip(truth, imagined, strict=True) for row in pair])


if __name__ == "__main__":
    run_stage(main, Config, PRESETS)
