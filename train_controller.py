"""Stage 4: fit a light policy inside the world.

Reads   RUN/shards, RUN/tokenizer/best.pt and RUN/dynamics/best.pt.
Writes  RUN/controller/cloning (behaviour cloning) and, by actor-critic in imagination from there,
        RUN/controller: best.pt, last.pt, log.jsonl, tensorboard.
Try     python train_controller.py --run runs/pusht --preset pusht cpu
Next    evaluate.py, play.py
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from data.clips import Clips
from data.shards import Recordings
from evaluation.windows import spread_windows
from models.actor_critic import ActorCritic, ActorCriticConfig
from models.build import build_controller, describe
from models.world import World
from pipeline import checkpoint as ckpt
from pipeline.cli import run as run_stage
from pipeline.latents import LatentClips, cache_latents
from pipeline.load import load_world
from pipeline.run import Run, TrainConfig
from pipeline.shown import ShownSteps, StartsBesideSteps


@dataclass(frozen=True)
class Config:
    run: Path = Path("runs/pusht")
    """Folder of the world model; all is read from there, and the controller written."""
    method: Literal["actor_critic", "cloning"] = "actor_critic"
    """Cloning alone, or improved by actor-critic in imagination."""
    model: ActorCriticConfig = field(default_factory=ActorCriticConfig)
    enough: float = 0.7
    """Reward that an episode must reach to be cloned, up to where it is highest."""
    cloning: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            steps=20000, batch_size=512, learning_rate=5e-4, weight_decay=0.05, evaluate_every=1000
        )
    )
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            steps=5000,
            batch_size=512,
            learning_rate=1e-4,
            weight_decay=0.01,
            average=0.95,
            evaluate_every=500,
            schedule="constant",
        )
    )
    """Training of the actor-critic."""
    restart: bool = False
    """Begin anew, although there is a checkpoint to go on from."""


def _steps(config: Config, cloning: dict[str, Any], train: dict[str, Any]) -> Config:
    return replace(
        config, cloning=replace(config.cloning, **cloning), train=replace(config.train, **train)
    )


PRESETS = {
    "pusht": lambda c: c,
    "goals": lambda c: c,
    "dinov2": lambda c: c,
    "cpu": lambda c: _steps(
        c,
        {"steps": 700, "batch_size": 256, "learning_rate": 1e-3, "evaluate_every": 100},
        {"steps": 30, "batch_size": 48, "evaluate_every": 15, "save_every": 15, "report_every": 5,
         "warmup": 10},
    ),
    "debug": lambda c: replace(
        _steps(
            c,
            {"steps": 20, "batch_size": 16, "evaluate_every": 10, "save_every": 5},
            {"steps": 4, "batch_size": 4, "evaluate_every": 2, "save_every": 1},
        ),
        enough=0.1,
    ),
}  # fmt: skip


def main(config: Config) -> None:
    recordings = Recordings(config.run / "shards")
    world = load_world(config.run)
    if config.method == "actor_critic" and not world.dynamics.has_rewards:
        raise ValueError(
            f"the dynamics of {config.run} has no reward head (its recordings had no rewards), so "
            f"there is nothing to improve on in imagination; --method cloning needs none"
        )
    parent = ckpt.load(config.run / "tokenizer" / "best.pt", "tokenizer")
    latents = cache_latents(
        config.run / "latents", world.tokenizer, parent["fingerprint"], recordings, world.device
    )
    shown = ShownSteps(recordings, "train", latents, config.enough)
    policy = clone(config, world, shown, recordings, latents)
    if config.method == "actor_critic":
        improve(config, world, shown, recordings, latents, policy)


def clone(
    config: Config, world: World, shown: ShownSteps, recordings: Recordings, latents: np.ndarray
) -> dict[str, Tensor]:
    """Fit the policy to what the recordings show; give the weights of the best."""
    held_out = ShownSteps(recordings, "validation", latents, config.enough)
    torch.manual_seed(config.cloning.seed)
    policy = build_controller(config.model.policy, world.latents, world.actions)
    policy.adopt(world.tokenizer)
    run = Run(
        "controller",
        config.run / "controller" / "cloning",
        policy,
        config.cloning,
        identity=_identity(config, config.model.policy, world),
        restart=config.restart,
        higher_is_better=False,
        data=f"cloning {len(shown)} steps of {shown.episodes} episodes; dynamics has "
        f"{sum(p.numel() for p in world.dynamics.parameters()) / 1e6:.2f} M",  # type: ignore[attr-defined]
    )
    for _, step in run.batches(shown):
        run.descend(step.latents, step.actions)
        if run.due(config.cloning.evaluate_every):
            part = held_out.batch(np.linspace(0, len(held_out) - 1, 2048).astype(np.int64))
            with run.averaged() as average:
                losses = average.loss(  # type: ignore[operator]
                    part.latents.to(run.device), part.actions.to(run.device)
                )
            run.keep_best(float(losses["cloning"]), {k: float(v) for k, v in losses.items()})
    best = ckpt.load(config.run / "controller" / "cloning" / "best.pt", "controller", run.device)
    return best["model"]


def improve(
    config: Config,
    world: World,
    shown: ShownSteps,
    recordings: Recordings,
    latents: np.ndarray,
    cloned: dict[str, Tensor],
) -> None:
    """Go on from the cloned policy with actor-critic on imagined trajectories."""
    torch.manual_seed(config.train.seed)
    model = build_controller(config.model, world.latents, world.actions)
    model.adopt(world.tokenizer)
    model.policy.load_state_dict(cloned)

    def objective(*tensors: Tensor) -> dict[str, Tensor]:
        return model.loss(world, *tensors)

    run = Run(
        "controller",
        config.run / "controller",
        model,
        config.train,
        identity=_identity(config, config.model, world),
        objective=objective,
        restart=config.restart,
        data=f"actor-critic, {config.train.batch_size} starts x {config.model.horizon} steps",
    )
    starts = StartsBesideSteps(Clips(recordings, "train", world.context), latents, shown)
    held_out = LatentClips(Clips(recordings, "validation", world.context), latents)
    if run.step == 0:
        run.keep_best(**_imagined_reward(run, world, held_out))
    for _, batch in run.batches(starts):
        start, step = batch.starts, batch.shown
        run.descend(start.latents, start.actions, step.latents, step.actions)
        if run.due(config.train.evaluate_every):
            run.keep_best(**_imagined_reward(run, world, held_out))


def _imagined_reward(run: Run, world: World, held_out: LatentClips, starts: int = 32) -> Any:
    """Imagined reward over twice the horizon, from held-out starts: best.pt is chosen by it."""
    chosen, _ = spread_windows(held_out.clips, starts, seed=0)
    clip = held_out.batch(chosen)
    with run.averaged() as average, torch.random.fork_rng():
        assert isinstance(average, ActorCritic)
        torch.manual_seed(0)
        _, _, rewards, _ = average.imagine(
            world,
            clip.latents.to(run.device),
            clip.actions.to(run.device),
            2 * average.config.horizon,
        )
    figures = {"imagined_reward": float(rewards.mean()), "at_the_end": float(rewards[-1].mean())}
    return {"value": figures["imagined_reward"], "figures": figures}


def _identity(config: Config, model: Any, world: World) -> dict[str, Any]:
    path = config.run / "dynamics" / "best.pt"
    return {
        "config": describe(model),
        "latents": world.latents.as_dict(),
        "actions": world.actions.as_dict(),
        "parent": {
            "path": str(path),
            "fingerprint": ckpt.load(path, "dynamics")["fingerprint"],
        },
    }


if __name__ == "__main__":
    run_stage(main, Config, PRESETS)
