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
from data.shards import EpisodeDataset
from data.splits import Split
from evaluation.measures.sample_clips import sample_clips
from kernels import Kernels
from models.controllers.actor_critic import ActorCriticConfig
from models.controllers.discrete_goal_policy import DiscreteGoalPolicyConfig
from models.controllers.goal_policy import GoalPolicyConfig
from models.registry import build_controller, describe
from models.world import World, autocast
from pipeline import checkpoint as ckpt
from pipeline.cli import run_cli as run_stage
from pipeline.inference.load import load_world
from pipeline.training.demonstrations import DemoSteps, StartsWithDemos
from pipeline.training.latents import LatentClips, cache_latents
from pipeline.training.train_config import TrainConfig
from pipeline.training.trainer import Trainer

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
    goal_policy: GoalPolicyConfig | DiscreteGoalPolicyConfig = field(
        default_factory=GoalPolicyConfig
    )
    """Policy that is shown goals: of continuous actions, or of keys (--preset minecraft)."""
    min_reward: float = 0.7
    """Reward that an episode must reach to be cloned, up to where it is highest."""
    bc: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            steps=20000, batch_size=512, learning_rate=5e-4, weight_decay=0.05, eval_every=1000
        )
    )
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            steps=5000,
            batch_size=512,
            learning_rate=1e-4,
            weight_decay=0.01,
            ema_decay=0.95,
            eval_every=500,
            schedule="constant",
        )
    )
    """Training of the actor-critic."""
    goal_policy_train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            steps=10000,
            batch_size=256,
            learning_rate=1e-3,
            weight_decay=0.01,
            beta2=0.999,
            eval_every=1000,
        )
    )
    """Training towards goals."""
    kernels: Kernels = "auto"
    """Run operations as Triton kernels, as PyTorch, or as what was measured faster on this GPU."""
    restart: bool = False
    """Begin anew, although there is a checkpoint to go on from."""


def _steps(
    config: Config, bc: dict[str, Any], train: dict[str, Any], goal_policy_train: dict[str, Any]
) -> Config:
    return replace(
        config,
        bc=replace(config.bc, **bc),
        train=replace(config.train, **train),
        goal_policy_train=replace(config.goal_policy_train, **goal_policy_train),
    )


# Towards goals on two cores, and in an hour for everything: gradients through a world are dear, and
# keys are learnt from drawn ways.
GOAL_POLICY_SIZES: dict[type, tuple[dict[str, Any], dict[str, Any]]] = {
    GoalPolicyConfig: (
        {"steps": 300, "batch_size": 256, "evaluate_every": 100, "save_every": 50, "graph": False},
        {"steps": 6000, "evaluate_every": 1000, "compile": "auto"},
    ),
    DiscreteGoalPolicyConfig: (
        {"steps": 160, "batch_size": 64, "evaluate_every": 80, "save_every": 40},
        {"steps": 1200, "evaluate_every": 200},
    ),
}


# What short recordings have room for.
DEBUG_GOAL_POLICY: dict[type, dict[str, int]] = {
    GoalPolicyConfig: {"ahead": 10},
    DiscreteGoalPolicyConfig: {},
}


def _cpu(config: Config) -> Config:
    return _steps(
        config,
        {"steps": 700, "batch_size": 256, "learning_rate": 1e-3, "evaluate_every": 100,
         "save_every": 100},
        {"steps": 40, "batch_size": 48, "evaluate_every": 20, "save_every": 20, "report_every": 5,
         "warmup": 10},
        GOAL_POLICY_SIZES[type(config.goal_policy)][0],
    )  # fmt: skip


def _with_goal_policy(config: Config) -> Config:
    return replace(config, methods=("cloning", "actor_critic", "goals"))


def _keypoints(config: Config) -> Config:
    """Keypoints, on a GPU: few steps of what is not told the goal, and recorded ones of what is."""
    return _steps(
        _with_goal_policy(config),
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
        goal_policy=DiscreteGoalPolicyConfig(),
        goal_policy_train=replace(config.goal_policy_train, batch_size=64, learning_rate=3e-4),
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
    "goals": _keypoints,
    "dinov2": _with_goal_policy,
    "latent": _with_goal_policy,
    "cpu": _cpu,
    "hour": lambda c: _steps(_cpu(c), {}, {}, GOAL_POLICY_SIZES[type(c.goals)][1]),
    "debug": lambda c: replace(
        _steps(
            c,
            {"steps": 20, "batch_size": 16, "evaluate_every": 10, "save_every": 5},
            {"steps": 4, "batch_size": 4, "evaluate_every": 2, "save_every": 1},
            {"steps": 4, "batch_size": 4, "evaluate_every": 2, "save_every": 1, "graph": False},
        ),
        min_reward=0.1,
        goals=replace(c.goals, **DEBUG_GOAL_POLICY[type(c.goals)]),
    ),
}


@dataclass
class ControllerContext:
    """What every method learns from: a world, and what is recorded of it."""

    config: Config
    world: World
    dataset: EpisodeDataset
    latents: np.ndarray

    def demos(self, split: str) -> DemoSteps:
        return DemoSteps(self.dataset, split, self.latents, self.config.min_reward)

    def clips(self, split: Split, frames: int) -> LatentClips:
        return LatentClips(Clips(self.dataset, split, frames), self.latents)

    def metadata(self, model: Any) -> dict[str, Any]:
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
    dataset = EpisodeDataset(config.run / "shards")
    world = load_world(config.run)
    if "actor_critic" in config.methods and not world.dynamics.has_rewards:
        raise ValueError(
            f"the dynamics of {config.run} has no reward head (its recordings had no rewards), so "
            f"there is nothing to improve on in imagination; --methods cloning needs none"
        )
    tokenizer_checkpoint = ckpt.load(config.run / "tokenizer" / "best.pt", "tokenizer")
    latents = cache_latents(
        config.run / "latents",
        world.tokenizer,
        tokenizer_checkpoint["fingerprint"],
        dataset,
        world.device,
    )
    ctx = ControllerContext(config, world, dataset, latents)
    for method in config.methods:
        METHODS[method](ctx)


def train_bc(ctx: ControllerContext) -> None:
    """Fit the policy to what the recordings show."""
    config, world = ctx.config, ctx.world
    demos, held_out = ctx.demos("train"), ctx.demos("validation")
    torch.manual_seed(config.bc.seed)
    policy = build_controller(config.model.policy, world.latents, world.actions)
    policy.load_codebook(world.tokenizer)
    trainer = Trainer(
        "controller",
        config.run / "controller" / "cloning",
        policy,
        config.bc,
        metadata=ctx.metadata(config.model.policy),
        restart=config.restart,
        higher_is_better=False,
        flag_prefix="cloning",
        data_summary=f"cloning {len(demos)} steps of {demos.num_episodes} episodes; dynamics has "
        f"{sum(p.numel() for p in world.dynamics.parameters()) / 1e6:.2f} M",  # type: ignore[attr-defined]
    )
    for _, demo in trainer.batches(demos):
        trainer.train_step(demo.latents, demo.actions)
        if trainer.every(config.bc.eval_every):
            indices = np.linspace(0, len(held_out) - 1, min(2048, len(held_out))).astype(np.int64)
            batch = held_out.batch(indices)
            with trainer.ema_model() as ema_model:
                losses = ema_model.loss(  # type: ignore[operator]
                    batch.latents.to(trainer.device), batch.actions.to(trainer.device)
                )
            trainer.save_best(float(losses["cloning"]), {k: float(v) for k, v in losses.items()})


def train_actor_critic(ctx: ControllerContext) -> None:
    """Go on from the best cloned policy with actor-critic on imagined trajectories."""
    config, world = ctx.config, ctx.world
    torch.manual_seed(config.train.seed)
    model = build_controller(config.model, world.latents, world.actions)
    model.load_codebook(world.tokenizer)
    path = config.run / "controller" / "cloning" / "best.pt"
    if not path.exists():
        raise ValueError(
            f"{path} is not there, and actor-critic begins from a clone; --methods cloning "
            f"actor_critic makes both"
        )
    bc_checkpoint = ckpt.load(path, "controller")
    ckpt.restore(model.policy, bc_checkpoint, path)
    bc_model = copy.deepcopy(model).eval()

    def loss_fn(*tensors: Tensor) -> dict[str, Tensor]:
        return model.loss(world, *tensors)

    trainer = Trainer(
        "controller",
        config.run / "controller",
        model,
        config.train,
        metadata=ctx.metadata(config.model)
        | {"clone": {"path": str(path), "fingerprint": bc_checkpoint["fingerprint"]}},
        loss_fn=loss_fn,
        restart=config.restart,
        data_summary=f"actor-critic, {config.train.batch_size} starts x {config.model.horizon} steps",
    )
    if trainer.finished:
        return trainer.log_finished()
    starts = StartsWithDemos(ctx.clips("train", world.context), ctx.demos("train"))
    held_out = ctx.clips("validation", world.context)
    with torch.no_grad(), autocast(trainer.device, trainer.precision):
        bc_rewards = rollout_rewards(bc_model.to(trainer.device), world, held_out)
    if trainer.best is None and trainer.step == 0:
        trainer.save_best(**improvement(bc_rewards, bc_rewards))
    for _, batch in trainer.batches(starts):
        start, demo = batch.starts, batch.demos
        trainer.train_step(start.latents, start.actions, demo.latents, demo.actions)
        if trainer.every(config.train.eval_every):
            with trainer.ema_model() as ema_model:
                rewards = rollout_rewards(ema_model, world, held_out)
            trainer.save_best(**improvement(rewards, bc_rewards))


def rollout_rewards(
    model: Any, world: World, held_out: LatentClips, num_starts: int = 64
) -> Tensor:
    """Rewards over twice the horizon, from held-out starts and the same draws: (2 H, starts)."""
    indices, _ = sample_clips(held_out.clips, num_starts, seed=0)
    clip = held_out.batch(indices)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        _, _, rewards, _ = model.imagine(
            world,
            clip.latents.to(world.device),
            clip.actions.to(world.device),
            2 * model.config.horizon,
        )
    return rewards


def improvement(rewards: Tensor, bc_rewards: Tensor) -> dict[str, Any]:
    """What best.pt is chosen by: how much better than the clone's, (2 H, starts) each, it is for
    sure, the lower end of a 95% interval of the mean over starts.  The clone itself is at 0."""
    difference = (rewards - bc_rewards).mean(0)
    ci_low = difference.mean() - 1.96 * difference.std(correction=0) / len(difference) ** 0.5
    metrics = {
        "imagined_reward": float(rewards.mean()),
        "at_the_end": float(rewards[-1].mean()),
        "better": float(difference.mean()),
        "better_low": float(ci_low),
    }
    return {"value": metrics["better_low"], "figures": metrics}


def train_goal_policy(ctx: ControllerContext) -> None:
    """Learn by imagining how goals are reached; best.pt ends nearest to held-out goals."""
    config, world = ctx.config, ctx.world
    torch.manual_seed(config.goal_policy_train.seed)
    model = build_controller(config.goal_policy, world.latents, world.actions)
    model.load_codebook(world.tokenizer)

    def loss_fn(*tensors: Tensor) -> dict[str, Tensor]:
        return model.loss(world, *tensors)

    train, held_out = (
        ctx.clips(split, max(world.context, 2) + model.horizon)  # an action before the start
        for split in ("train", "validation")
    )
    trainer = Trainer(
        "controller",
        config.run / "controller" / "goals",
        model,
        config.goal_policy_train,
        metadata=ctx.metadata(config.goal_policy),
        loss_fn=loss_fn,
        restart=config.restart,
        higher_is_better=False,
        flag_prefix="reaching",
        data_summary=f"towards goals up to {model.horizon} steps away, {config.goal_policy_train.batch_size} starts",
    )
    indices, _ = sample_clips(held_out.clips, 256, seed=0)
    clip = held_out.batch(indices)
    trainer.cache_on_device(train)
    for _, batch in trainer.batches(train):
        trainer.train_step(batch.latents, batch.actions)
        if trainer.every(config.goal_policy_train.eval_every):
            with trainer.ema_model() as ema_model, torch.random.fork_rng():
                torch.manual_seed(0)
                losses = ema_model.loss(  # type: ignore[operator]
                    world, clip.latents.to(trainer.device), clip.actions.to(trainer.device)
                )
            trainer.save_best(float(losses["left"]), {k: float(v) for k, v in losses.items()})


# A new method is one line here.
METHODS: dict[Method, Callable[[ControllerContext], None]] = {
    "cloning": train_bc,
    "actor_critic": train_actor_critic,
    "goals": train_goal_policy,
}


if __name__ == "__main__":
    run_stage(main, Config, PRESETS)
