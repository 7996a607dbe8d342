"""Stage 4: fit a light policy inside the world.

Reads   RUN/shards, RUN/tokenizer/best.pt and RUN/dynamics/best.pt.
Writes  RUN/controller/cloning (behaviour cloning) and, by actor-critic in imagination from there,
        RUN/controller: best.pt, last.pt, log.jsonl, tensorboard. With --preset goals also
        RUN/controller/goals: a policy that is shown where to go.
Try     python train_controller.py --run runs/pusht --preset pusht cpu
Next    evaluate.py, play.py
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

import kernels
from data.clips import Clips
from data.shards import Recordings
from data.splits import Split
from evaluation.measures.sample_clips import spread_windows
from kernels import Kernels
from models.controllers.actor_critic import ActorCriticConfig
from models.controllers.discrete_goal_policy import GoalCodesConfig
from models.controllers.goal_policy import GoalPolicyConfig
from models.registry import build_controller, describe
from models.world import World, arithmetic
from pipeline import checkpoint as ckpt
from pipeline.cli import run as run_stage
from pipeline.inference.load import load_world
from pipeline.training.demonstrations import ShownSteps, StartsBesideSteps
from pipeline.training.latents import LatentClips, cache_latents
from pipeline.training.train_config import TrainConfig
from pipeline.training.trainer import Run

Method = Literal["cloning", "actor_critic", "goals"]


@dataclass(frozen=True)
class Config:
    run: Path = Path("runs/pusht")
    """Folder of the world model; all is read from there, and the controllers written."""
    methods: tuple[Method, ...] = ("cloning", "actor_critic")
    """What to fit, in this order: a clone of what is recorded; from there, actor-critic in
    imagination; a policy that is shown goals and learns in imagination to reach them."""
    model: ActorCriticConfig = field(default_factory=ActorCriticConfig)
    """Policy of the first two, and the actor-critic."""
    goals: GoalPolicyConfig | GoalCodesConfig = field(default_factory=GoalPolicyConfig)
    """Policy that is shown goals: of continuous actions, or of keys (--preset minecraft)."""
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
    reaching: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            steps=10000,
            batch_size=256,
            learning_rate=1e-3,
            weight_decay=0.01,
            beta2=0.999,
            evaluate_every=1000,
        )
    )
    """Training towards goals."""
    kernels: Kernels = "auto"
    """Run operations as Triton kernels, as PyTorch, or as what was measured faster on this GPU."""
    restart: bool = False
    """Begin anew, although there is a checkpoint to go on from."""


def _steps(
    config: Config, cloning: dict[str, Any], train: dict[str, Any], reaching: dict[str, Any]
) -> Config:
    return replace(
        config,
        cloning=replace(config.cloning, **cloning),
        train=replace(config.train, **train),
        reaching=replace(config.reaching, **reaching),
    )


# Towards goals on two cores, and in an hour for everything: gradients through a world are dear, and
# keys are learnt from drawn ways.
REACHING: dict[type, tuple[dict[str, Any], dict[str, Any]]] = {
    GoalPolicyConfig: (
        {"steps": 300, "batch_size": 256, "evaluate_every": 100, "save_every": 50, "graph": False},
        {"steps": 6000, "evaluate_every": 1000, "compile": "auto"},
    ),
    GoalCodesConfig: (
        {"steps": 160, "batch_size": 64, "evaluate_every": 80, "save_every": 40},
        {"steps": 1200, "evaluate_every": 200},
    ),
}


# What short recordings have room for.
NEAR: dict[type, dict[str, int]] = {GoalPolicyConfig: {"ahead": 10}, GoalCodesConfig: {}}


def _cpu(config: Config) -> Config:
    return _steps(
        config,
        {"steps": 700, "batch_size": 256, "learning_rate": 1e-3, "evaluate_every": 100,
         "save_every": 100},
        {"steps": 40, "batch_size": 48, "evaluate_every": 20, "save_every": 20, "report_every": 5,
         "warmup": 10},
        REACHING[type(config.goals)][0],
    )  # fmt: skip


def _with_goals(config: Config) -> Config:
    return replace(config, methods=("cloning", "actor_critic", "goals"))


def _goals(config: Config) -> Config:
    """Keypoints, on a GPU: few steps of what is not told the goal, and recorded ones of what is."""
    return _steps(
        _with_goals(config),
        {"steps": 2000, "evaluate_every": 500, "save_every": 500},
        {"steps": 300, "evaluate_every": 100},
        {"save_every": 500, "graph": True},
    )


def _minecraft(config: Config) -> Config:
    """Recordings have no reward: clone, and learn to reach frames."""
    return replace(
        config,
        run=Path("runs/minecraft"),
        methods=("cloning", "goals"),
        goals=GoalCodesConfig(),
        reaching=replace(config.reaching, batch_size=64, learning_rate=3e-4),
    )


PRESETS = {
    "pusht": lambda c: c,
    "minecraft": _minecraft,
    "minecraft-150m": _minecraft,
    "minecraft debug": lambda c: _steps(
        c,
        {"steps": 60, "batch_size": 64, "learning_rate": 5e-4, "evaluate_every": 10, "warmup": 10},
        {},
        {"steps": 20, "batch_size": 8, "evaluate_every": 10, "save_every": 10, "warmup": 5},
    ),
    "high_res": lambda c: c,
    "tokens": lambda c: c,
    "goals": _goals,
    "dinov2": _with_goals,
    "latent": _with_goals,
    "cpu": _cpu,
    "hour": lambda c: _steps(_cpu(c), {}, {}, REACHING[type(c.goals)][1]),
    "debug": lambda c: replace(
        _steps(
            c,
            {"steps": 20, "batch_size": 16, "evaluate_every": 10, "save_every": 5},
            {"steps": 4, "batch_size": 4, "evaluate_every": 2, "save_every": 1},
            {"steps": 4, "batch_size": 4, "evaluate_every": 2, "save_every": 1, "graph": False},
        ),
        enough=0.1,
        goals=replace(c.goals, **NEAR[type(c.goals)]),
    ),
}


@dataclass
class Inside:
    """What every method learns from: a world, and what is recorded of it."""

    config: Config
    world: World
    recordings: Recordings
    latents: np.ndarray

    def shown(self, split: str) -> ShownSteps:
        return ShownSteps(self.recordings, split, self.latents, self.config.enough)

    def clips(self, split: Split, frames: int) -> LatentClips:
        return LatentClips(Clips(self.recordings, split, frames), self.latents)

    def identity(self, model: Any) -> dict[str, Any]:
        """What a checkpoint of this world says of itself."""
        path = self.config.run / "dynamics" / "best.pt"
        fingerprint = ckpt.load(path, "dynamics")["fingerprint"]
        return {
            "config": describe(model),
            "latents": self.world.latents.as_dict(),
            "actions": self.world.actions.as_dict(),
            "parent": {"path": str(path), "fingerprint": fingerprint},
        }


def main(config: Config) -> None:
    kernels.choose(config.kernels)
    recordings = Recordings(config.run / "shards")
    world = load_world(config.run)
    if "actor_critic" in config.methods and not world.dynamics.has_rewards:
        raise ValueError(
            f"the dynamics of {config.run} has no reward head (its recordings had no rewards), so "
            f"there is nothing to improve on in imagination; --methods cloning needs none"
        )
    parent = ckpt.load(config.run / "tokenizer" / "best.pt", "tokenizer")
    latents = cache_latents(
        config.run / "latents", world.tokenizer, parent["fingerprint"], recordings, world.device
    )
    inside = Inside(config, world, recordings, latents)
    for method in config.methods:
        METHODS[method](inside)


def clone(inside: Inside) -> None:
    """Fit the policy to what the recordings show."""
    config, world = inside.config, inside.world
    shown, held_out = inside.shown("train"), inside.shown("validation")
    torch.manual_seed(config.cloning.seed)
    policy = build_controller(config.model.policy, world.latents, world.actions)
    policy.adopt(world.tokenizer)
    run = Run(
        "controller",
        config.run / "controller" / "cloning",
        policy,
        config.cloning,
        identity=inside.identity(config.model.policy),
        restart=config.restart,
        higher_is_better=False,
        flags="cloning",
        data=f"cloning {len(shown)} steps of {shown.episodes} episodes; dynamics has "
        f"{sum(p.numel() for p in world.dynamics.parameters()) / 1e6:.2f} M",  # type: ignore[attr-defined]
    )
    for _, step in run.batches(shown):
        run.descend(step.latents, step.actions)
        if run.due(config.cloning.evaluate_every):
            chosen = np.linspace(0, len(held_out) - 1, min(2048, len(held_out))).astype(np.int64)
            part = held_out.batch(chosen)
            with run.averaged() as average:
                losses = average.loss(  # type: ignore[operator]
                    part.latents.to(run.device), part.actions.to(run.device)
                )
            run.keep_best(float(losses["cloning"]), {k: float(v) for k, v in losses.items()})


def improve(inside: Inside) -> None:
    """Go on from the best cloned policy with actor-critic on imagined trajectories."""
    config, world = inside.config, inside.world
    torch.manual_seed(config.train.seed)
    model = build_controller(config.model, world.latents, world.actions)
    model.adopt(world.tokenizer)
    path = config.run / "controller" / "cloning" / "best.pt"
    if not path.exists():
        raise ValueError(
            f"{path} is not there, and actor-critic begins from a clone; --methods cloning "
            f"actor_critic makes both"
        )
    cloned = ckpt.load(path, "controller")
    ckpt.restore(model.policy, cloned, path)
    clone = copy.deepcopy(model).eval()

    def objective(*tensors: Tensor) -> dict[str, Tensor]:
        return model.loss(world, *tensors)

    run = Run(
        "controller",
        config.run / "controller",
        model,
        config.train,
        identity=inside.identity(config.model)
        | {"clone": {"path": str(path), "fingerprint": cloned["fingerprint"]}},
        objective=objective,
        restart=config.restart,
        data=f"actor-critic, {config.train.batch_size} starts x {config.model.horizon} steps",
    )
    if run.done:
        return run.say_done()
    starts = StartsBesideSteps(inside.clips("train", world.context), inside.shown("train"))
    held_out = inside.clips("validation", world.context)
    with torch.no_grad(), arithmetic(run.device, run.precision):
        known = imagined_rewards(clone.to(run.device), world, held_out)
    if run.best is None and run.step == 0:
        run.keep_best(**improvement(known, known))
    for _, batch in run.batches(starts):
        start, step = batch.starts, batch.shown
        run.descend(start.latents, start.actions, step.latents, step.actions)
        if run.due(config.train.evaluate_every):
            with run.averaged() as average:
                found = imagined_rewards(average, world, held_out)
            run.keep_best(**improvement(found, known))


def imagined_rewards(model: Any, world: World, held_out: LatentClips, starts: int = 64) -> Tensor:
    """Rewards over twice the horizon, from held-out starts and the same draws: (2 H, starts)."""
    chosen, _ = spread_windows(held_out.clips, starts, seed=0)
    clip = held_out.batch(chosen)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        _, _, rewards, _ = model.imagine(
            world,
            clip.latents.to(world.device),
            clip.actions.to(world.device),
            2 * model.config.horizon,
        )
    return rewards


def improvement(found: Tensor, known: Tensor) -> dict[str, Any]:
    """What best.pt is chosen by: how much better than the clone's, (2 H, starts) each, it is for
    sure, the lower end of a 95% interval of the mean over starts.  The clone itself is at 0."""
    better = (found - known).mean(0)
    low = better.mean() - 1.96 * better.std(correction=0) / len(better) ** 0.5
    figures = {
        "imagined_reward": float(found.mean()),
        "at_the_end": float(found[-1].mean()),
        "better": float(better.mean()),
        "better_low": float(low),
    }
    return {"value": figures["better_low"], "figures": figures}


def reach(inside: Inside) -> None:
    """Learn by imagining how goals are reached; best.pt ends nearest to held-out goals."""
    config, world = inside.config, inside.world
    torch.manual_seed(config.reaching.seed)
    model = build_controller(config.goals, world.latents, world.actions)
    model.adopt(world.tokenizer)

    def objective(*tensors: Tensor) -> dict[str, Tensor]:
        return model.loss(world, *tensors)

    train, held_out = (
        inside.clips(split, max(world.context, 2) + model.horizon)  # an action before the start
        for split in ("train", "validation")
    )
    run = Run(
        "controller",
        config.run / "controller" / "goals",
        model,
        config.reaching,
        identity=inside.identity(config.goals),
        objective=objective,
        restart=config.restart,
        higher_is_better=False,
        flags="reaching",
        data=f"towards goals up to {model.horizon} steps away, {config.reaching.batch_size} starts",
    )
    chosen, _ = spread_windows(held_out.clips, 256, seed=0)
    clip = held_out.batch(chosen)
    run.keep_near(train)
    for _, batch in run.batches(train):
        run.descend(batch.latents, batch.actions)
        if run.due(config.reaching.evaluate_every):
            with run.averaged() as average, torch.random.fork_rng():
                torch.manual_seed(0)
                losses = average.loss(  # type: ignore[operator]
                    world, clip.latents.to(run.device), clip.actions.to(run.device)
                )
            run.keep_best(float(losses["left"]), {k: float(v) for k, v in losses.items()})


# A new method is one line here.
METHODS: dict[Method, Callable[[Inside], None]] = {
    "cloning": clone,
    "actor_critic": improve,
    "goals": reach,
}


if __name__ == "__main__":
    run_stage(main, Config, PRESETS)
