"""Stage 4: fit a light policy inside the world.

Reads   RUN/shards, RUN/tokenizer/best.pt and RUN/dynamics/best.pt.
Writes  RUN/controller/bc (behavior cloning) and, by actor-critic in imagination from there,
        RUN/controller: best.pt, last.pt, log.jsonl, tensorboard. With --preset keypoints also
        RUN/controller/goal_policy: a policy that is given a goal.
Try     python train_controller.py --run runs/pusht --preset pusht cpu
Next    evaluate.py, play.py
"""

from __future__ import annotations

if __name__ in ("__main__", "__mp_main__"):  # a script, or a worker process of one
    from pipeline.startup import start

    start(__name__)

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import numpy as np
import torch
from torch import Tensor

from data.clips import Clips
from data.io.files import writable_folder
from data.ranges import CheckedConfig, NonEmpty, Range
from data.shards.episode_dataset import EpisodeDataset
from data.shards.shard_header import Split
from evaluation.measures.sample_clips import sample_clips
from kernels import Backend
from models import registry
from models.controllers.actor_critic import ActorCritic, ActorCriticConfig
from models.controllers.controller import TrainedController
from models.controllers.goal_policy import GoalPolicy
from models.layers.precision import autocast
from models.registry import DataSpec, MethodConfig
from models.world import World
from pipeline import checkpoint as ckpt
from pipeline.batches.clip_batches import ClipBatches
from pipeline.batches.demonstrations import DemoSteps, StartsWithDemos, demo_rows
from pipeline.batches.latent_cache import cache_latents, cache_states
from pipeline.device import DeviceOption, set_device
from pipeline.inference.load_world import load_world
from pipeline.trained_on import TrainedOn, check_parent_recordings, recordings_of
from pipeline.training.train_config import TrainConfig
from pipeline.training.trainer import Trainer

Method = Literal["bc", "actor_critic", "goal_policy"]


@dataclass(frozen=True)
class Config(CheckedConfig):
    run: Path = Path("runs/pusht")
    """Folder of the world model; all is read from there, and the controllers written."""
    methods: Annotated[tuple[Method, ...], NonEmpty()] = ("bc", "actor_critic")
    """What to fit, in this order: a clone of the demonstrations; from there, actor-critic in
    imagination; a policy that is given goals and learns in imagination to reach them."""
    model: ActorCriticConfig = field(default_factory=ActorCriticConfig)
    """Policy of the first two, and the actor-critic."""
    goal_policy: MethodConfig = field(
        default_factory=lambda: registry.default_config("goal_policy")
    )
    """Policy that is given goals: of continuous actions, or of keys (--preset minecraft)."""
    min_reward: Annotated[float, Range(-(10**9), 10**9)] = 0.7
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
    """Training of the goal policy."""
    device: DeviceOption = "auto"
    """Where to run: a CUDA GPU if there is one, else Apple's (mps), else the CPU."""
    kernels: Backend = "auto"
    """Run operations as Triton kernels, as PyTorch, or as what was measured faster on this GPU."""
    restart: bool = False
    """Start over, although there is a checkpoint to resume from."""


@dataclass
class ControllerContext:
    """What every method learns from: a world, and the dataset as states of it."""

    config: Config
    world: World
    dataset: EpisodeDataset
    latents: np.ndarray
    """Of the states at all frames: (frames, N) or (frames, P, D)."""
    parent: tuple[Path, str]
    """Path and fingerprint of the dynamics model."""
    recordings: TrainedOn
    """The dataset's training episodes."""

    @property
    def data(self) -> DataSpec:
        return DataSpec(self.world.image_size, self.world.actions, self.world.state_spec)

    def build(self, config: MethodConfig, seed: int) -> TrainedController:
        torch.manual_seed(seed)
        model = registry.build_controller(config, self.data)
        model.load_codebook(self.world)
        return model

    def demos(self, split: Split) -> DemoSteps:
        return DemoSteps(self.dataset, split, self.latents, self.config.min_reward)

    def clips(
        self, split: Split, clip_length: int, needs: frozenset[str], flag: str = ""
    ) -> ClipBatches:
        """Give clips of a split; flag: what makes them shorter."""
        return ClipBatches(Clips(self.dataset, split, clip_length, flag=flag), needs, self.latents)

    def describe(self, config: MethodConfig) -> dict[str, Any]:
        """What a checkpoint of this world says of itself."""
        return ckpt.describe(
            config,
            self.data,
            self.world.state_spec,
            self.world.actions,
            self.parent,
            self.recordings,
        )


def main(config: Config) -> None:
    set_device(config.device, config.kernels)
    dataset = EpisodeDataset(config.run / "shards")
    world = load_world(config.run)
    methods = possible_methods(config, world)
    path = config.run / "dynamics" / "best.pt"
    dynamics = ckpt.load(path, "dynamics")
    recordings = check_recordings(config.run, dynamics, dataset)
    check_demos(methods, dataset, config.min_reward)
    writable_folder(config.run / "controller")
    latents = cache(config.run, world, dynamics, dataset)
    below = path, dynamics["fingerprint"]
    context = ControllerContext(config, world, dataset, latents, below, recordings)
    for method in methods:
        METHODS[method](context)


def possible_methods(config: Config, world: World) -> tuple[Method, ...]:
    """Leave the actor-critic out, and say so, where no rewards were learned that it could raise;
    ValueError where nothing is left."""
    if world.has_rewards or "actor_critic" not in config.methods:
        return config.methods
    reason = f"the dynamics of {config.run} has no reward head (its dataset had no rewards)"
    methods: tuple[Method, ...] = tuple(m for m in config.methods if m != "actor_critic")
    if not methods:
        raise ValueError(f"{reason}, so there is nothing to improve on; --methods bc needs none")
    print(f"controller: {reason}, so no actor-critic is trained; {' and '.join(methods)} will be")
    return methods


def check_recordings(run: Path, dynamics: ckpt.Checkpoint, dataset: EpisodeDataset) -> TrainedOn:
    """Describe the dataset's training episodes; ValueError where the world has learned others."""
    recordings = recordings_of(dataset, dynamics)
    check_parent_recordings(dynamics, run / "dynamics" / "best.pt", recordings, dataset)
    path = run / "tokenizer" / "best.pt"
    if path.exists():
        check_parent_recordings(ckpt.load(path, "tokenizer"), path, recordings, dataset)
    return recordings


def check_demos(methods: tuple[Method, ...], dataset: EpisodeDataset, min_reward: float) -> None:
    """Raise ValueError now, not after the latents are encoded, where there is nothing to clone."""
    if {"bc", "actor_critic"} & set(methods):
        for split in ("train", "validation"):
            demo_rows(dataset, split, min_reward)


def cache(
    run: Path, world: World, dynamics: ckpt.Checkpoint, dataset: EpisodeDataset
) -> np.ndarray:
    """Latents of the states at all frames: the tokenizer's, or what the world makes of them."""
    if world.state_spec == world.latents:
        parent = dynamics["parent"]["fingerprint"]
        return cache_latents(run / "latents", world, parent, dataset, world.device)
    return cache_states(run / "states", world, dynamics["fingerprint"], dataset)


def train_bc(context: ControllerContext) -> None:
    """Fit the policy to the demonstrations."""
    config, world = context.config, context.world
    demos, held_out = context.demos("train"), context.demos("validation")
    policy = context.build(config.model.policy, config.bc.seed)
    trainer = Trainer(
        "controller",
        config.run / "controller" / "bc",
        policy,
        config.bc,
        context.describe(config.model.policy),
        restart=config.restart,
        flag_prefix="bc",
        data_summary=f"bc: {len(demos)} steps of {demos.num_episodes} episodes; dynamics has "
        f"{world.num_parameters / 1e6:.2f} M",
    )
    indices = np.linspace(0, len(held_out) - 1, min(2048, len(held_out))).astype(np.int64)
    held_out_batch = held_out.batch(indices).to(trainer.device)
    for batch in trainer.batches(demos):
        trainer.step(policy.loss, batch)
        if trainer.every(config.bc.eval_every):
            with trainer.ema_model() as ema_model:
                losses = ema_model.loss(held_out_batch)
            trainer.save_best({k: float(v) for k, v in losses.items()})


def train_actor_critic(context: ControllerContext) -> None:
    """Start from the best cloned policy, and train actor-critic on model rollouts."""
    config, world = context.config, context.world
    model = cast(ActorCritic, context.build(config.model, config.train.seed))
    path = config.run / "controller" / "bc" / "best.pt"
    if not path.exists():
        raise ValueError(
            f"{path} is not there, and actor-critic starts from a clone; --methods bc "
            f"actor_critic makes both"
        )
    bc = ckpt.load(path, "controller")
    below = context.parent[0]
    ckpt.check_parent(bc, path, ckpt.load(below, "dynamics"), below)
    check_parent_recordings(bc, path, context.recordings, context.dataset)
    ckpt.restore(model.policy, bc, path)
    clone = copy.deepcopy(model).eval()
    trainer = Trainer(
        "controller",
        config.run / "controller",
        model,
        config.train,
        context.describe(config.model)
        | {"bc": {"path": str(path), "fingerprint": bc["fingerprint"]}},
        restart=config.restart,
        data_summary=f"actor-critic, {config.train.batch_size} starts x "
        f"{config.model.horizon} steps",
    )
    if trainer.finished:
        return trainer.log_finished()
    starts = StartsWithDemos(
        context.clips("train", world.context, model.needs), context.demos("train")
    )
    held_out = context.clips("validation", world.context, model.needs)
    with torch.no_grad(), autocast(trainer.device, trainer.precision):
        baseline = imagined_rewards(clone.to(trainer.device), world, held_out)
    if trainer.best is None and trainer.global_step == 0:
        trainer.save_best(improvement(baseline, baseline))
    for batch in trainer.batches(starts):
        trainer.step(model.loss, batch, world)
        if trainer.every(config.train.eval_every):
            with trainer.ema_model() as ema_model:
                rewards = imagined_rewards(ema_model, world, held_out)
            trainer.save_best(improvement(rewards, baseline))


def imagined_rewards(
    model: ActorCritic, world: World, held_out: ClipBatches, num_starts: int = 64
) -> Tensor:
    """Rewards over twice the horizon, from held-out starts and the same draws: (2 H, starts)."""
    indices, _ = sample_clips(held_out.clips, num_starts, seed=0)
    latents, actions = held_out.batch(indices).to(world.device).require("latents", "actions")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        _, _, rewards, _ = model.imagine(world, latents, actions, 2 * model.config.horizon)
    return rewards


def improvement(rewards: Tensor, baseline: Tensor) -> dict[str, float]:
    """How much better than the clone's rewards, (2 H, starts) each: `improvement_ci_low` is the
    lower end of a 95% interval of the mean over starts, 0 for the clone itself."""
    better = (rewards - baseline).mean(0)
    low = better.mean() - 1.96 * better.std(correction=0) / len(better) ** 0.5
    return {
        "imagined_reward": float(rewards.mean()),
        "final_reward": float(rewards[-1].mean()),
        "improvement": float(better.mean()),
        "improvement_ci_low": float(low),
    }


def train_goal_policy(context: ControllerContext) -> None:
    """Learn in imagination to reach goals; best.pt ends nearest to held-out goals."""
    config, world = context.config, context.world
    model = cast(GoalPolicy, context.build(config.goal_policy, config.goal_policy_train.seed))
    # an action before the start is known
    length, flag = max(world.context, 2) + model.max_goal_offset, "--goal-policy.max-goal-offset"
    train, held_out = (
        context.clips(split, length, model.needs, flag) for split in ("train", "validation")
    )
    trainer = Trainer(
        "controller",
        config.run / "controller" / "goal_policy",
        model,
        config.goal_policy_train,
        context.describe(config.goal_policy),
        restart=config.restart,
        flag_prefix="goal-policy-train",
        data_summary=f"goals up to {model.max_goal_offset} steps away, "
        f"{config.goal_policy_train.batch_size} starts",
    )
    indices, _ = sample_clips(held_out.clips, 256, seed=0)
    held_out_batch = held_out.batch(indices).to(trainer.device)
    trainer.cache_on_device(train)
    for batch in trainer.batches(train):
        trainer.step(model.loss, batch, world)
        if trainer.every(config.goal_policy_train.eval_every):
            with trainer.ema_model() as ema_model, torch.random.fork_rng():
                torch.manual_seed(0)
                losses = ema_model.loss(held_out_batch, world)
            trainer.save_best({k: float(v) for k, v in losses.items()})


# A new method is one line here.
METHODS: dict[Method, Callable[[ControllerContext], None]] = {
    "bc": train_bc,
    "actor_critic": train_actor_critic,
    "goal_policy": train_goal_policy,
}


if __name__ == "__main__":
    from pipeline.cli import run_cli

    run_cli(main, Config, "controller")
