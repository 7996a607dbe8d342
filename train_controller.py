"""Stage 4: fit a light policy inside the world.

Reads   RUN/shards, RUN/tokenizer/best.pt and RUN/dynamics/best.pt.
Writes  RUN/controller/bc (behavior cloning) and, by actor-critic in imagination from there,
        RUN/controller: best.pt, last.pt, log.jsonl, tensorboard. With --preset keypoints also
        RUN/controller/goal_policy, a policy that is given a goal, RUN/controller/task_cost, what
        the task costs, and RUN/controller/flow_policy, an imitator in chunks of actions.
Try     python train_controller.py --run runs/pusht --preset pusht cpu
Next    evaluate.py, play.py
"""

from __future__ import annotations

if __name__ in ("__main__", "__mp_main__"):  # a script, or a worker process of one
    from pipeline.startup import start

    start(__name__)

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal, cast

import numpy as np
import torch

from data.batch import Batch
from data.io.files import writable_folder
from data.ranges import CheckedConfig, NonEmpty, Range
from data.shards.episode_dataset import EpisodeDataset
from evaluation.measures.sample_clips import sample_clips
from kernels import Backend
from models import registry
from models.controllers.actor_critic import ActorCritic, ActorCriticConfig
from models.controllers.controller import TrainedController
from models.controllers.flow_policy import FlowPolicyConfig
from models.controllers.goal_policy import GoalPolicy
from models.controllers.task_cost import TaskCostConfig
from models.layers.precision import autocast
from models.registry import DataSpec, MethodConfig
from models.world import World
from pipeline import checkpoint as ckpt
from pipeline.batches.clip_batches import ClipBatches
from pipeline.batches.demonstrations import DemoSteps, StartsWithDemos, demo_rows
from pipeline.batches.rewarded_clips import RewardedClips
from pipeline.batches.sample import sample_of
from pipeline.device import DeviceOption, set_device
from pipeline.inference.load_world import load_world
from pipeline.trained_on import check_parent_recordings
from pipeline.training.controller_context import ControllerContext, cache, check_recordings
from pipeline.training.imagined_rewards import imagined_rewards, improvement
from pipeline.training.train_config import TrainConfig
from pipeline.training.trainer import Trainer

Method = Literal["bc", "actor_critic", "goal_policy", "task_cost", "flow_policy"]
FROM_REWARDS = ("actor_critic", "task_cost")


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
    task_cost: TaskCostConfig = field(default_factory=TaskCostConfig)
    """What the task costs, for planning without a goal's image."""
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
    task_cost_train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            steps=6000,
            batch_size=1024,
            learning_rate=2e-3,
            weight_decay=1e-3,
            eval_every=1000,
            precision="fp32",
        )
    )
    """Training of the task's cost, which 16 bits would blur."""
    flow_policy: FlowPolicyConfig = field(default_factory=FlowPolicyConfig)
    """Imitator of the demonstrations, in chunks of actions."""
    flow_min_reward: Annotated[float, Range(-(10**9), 10**9)] = 0.9
    """As min_reward, for the flow policy: it copies flaws more exactly than bc."""
    flow_policy_train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            steps=7500,
            batch_size=256,
            learning_rate=1e-3,
            warmup_steps=200,
            weight_decay=0.01,
            beta2=0.99,
            eval_every=7500,
        )
    )
    """Training of the flow policy.  It is validated at the end alone: the error on held-out actions
    rises while the policy still gets better."""
    device: DeviceOption = "auto"
    """Where to run: a CUDA GPU if there is one, else Apple's (mps), else the CPU."""
    kernels: Backend = "auto"
    """Run operations as Triton kernels, as PyTorch, or as what was measured faster on this GPU."""
    restart: bool = False
    """Start over, although there is a checkpoint to resume from."""


def main(config: Config) -> None:
    set_device(config.device, config.kernels)
    dataset = EpisodeDataset(config.run / "shards")
    world = load_world(config.run)
    methods = possible_methods(config, world, dataset)
    path = config.run / "dynamics" / "best.pt"
    dynamics = ckpt.load(path, "dynamics")
    recordings = check_recordings(config.run, dynamics, dataset)
    data = DataSpec(world.image_size, world.actions, world.state_spec)
    check(config, methods, data, dataset)
    writable_folder(config.run / "controller")
    latents = cache(config.run, world, dynamics, dataset)
    below = path, dynamics["fingerprint"]
    context = ControllerContext(config.run, world, dataset, latents, below, recordings)
    for method in methods:
        METHODS[method](config, context)


def possible_methods(config: Config, world: World, dataset: EpisodeDataset) -> tuple[Method, ...]:
    """Leave out, and say so, what the data has nothing for; ValueError where nothing is left."""
    reasons = {method: why_not(config, method, world, dataset) for method in config.methods}
    left_out = {method: reason for method, reason in reasons.items() if reason}
    methods: tuple[Method, ...] = tuple(m for m in config.methods if m not in left_out)
    if not methods:
        raise ValueError(
            f"{'; '.join(left_out.values())}; so there is nothing to train; --methods bc needs no "
            f"rewards"
        )
    for method, reason in left_out.items():
        print(f"controller: {reason}, so no {method} is trained; {' and '.join(methods)} will be")
    return methods


def why_not(config: Config, method: Method, world: World, dataset: EpisodeDataset) -> str:
    """Say what of the data a method lacks; nothing where it can be trained."""
    if method in FROM_REWARDS and not world.has_rewards:
        return f"the dynamics of {config.run} has no reward head (its dataset had no rewards)"
    if method == "task_cost":
        rewards = dataset.read_rows("rewards", 0, dataset.num_frames)
        if rewards.min() == rewards.max():
            return f"every reward of {dataset.folder} is {rewards.max():g}, which shows no goal"
    if method == "flow_policy":
        try:
            for split in ("train", "validation"):
                demo_rows(dataset, split, config.flow_min_reward, "--flow-min-reward")
        except ValueError as problem:
            return str(problem)
    return ""


def check(
    config: Config, methods: tuple[Method, ...], data: DataSpec, dataset: EpisodeDataset
) -> None:
    """Raise ValueError now, not after hours of what comes before, where a method cannot be built
    for this world, or there is nothing to clone."""
    models: dict[Method, MethodConfig] = {
        "bc": config.model.policy,
        "actor_critic": config.model,
        "goal_policy": config.goal_policy,
        "task_cost": config.task_cost,
        "flow_policy": config.flow_policy,
    }
    for method in methods:
        registry.build_controller(models[method], data)
    for split in ("train", "validation"):
        if {"bc", "actor_critic"} & set(methods):
            demo_rows(dataset, split, config.min_reward)


def train_bc(config: Config, context: ControllerContext) -> None:
    """Fit the policy to the demonstrations."""
    demos, held_out = (context.demos(split, config.min_reward) for split in ("train", "validation"))
    indices = np.linspace(0, len(held_out) - 1, min(2048, len(held_out))).astype(np.int64)
    model = context.build(config.model.policy, config.bc.seed)
    summary = (
        f"bc: {len(demos)} steps of {demos.num_episodes} episodes; dynamics has "
        f"{context.world.num_parameters / 1e6:.2f} M"
    )
    training = Training("bc", model, config.bc, "bc", summary)
    fit(config, context, training, demos, held_out.batch(indices))


def train_actor_critic(config: Config, context: ControllerContext) -> None:
    """Start from the best cloned policy, and train actor-critic on model rollouts."""
    world = context.world
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
    model.load_codebook(world)  # the weights that it resumed may be of an earlier one
    starts = StartsWithDemos(
        context.clips("train", world.context, model.needs),
        context.demos("train", config.min_reward),
    )
    held_out = context.clips("validation", world.context, model.needs)
    indices, _ = sample_clips(held_out.clips, 64, seed=0)
    held_out_starts = held_out.batch(indices).to(world.device)
    with torch.no_grad(), autocast(trainer.device, trainer.precision):
        baseline = imagined_rewards(clone.to(trainer.device), world, held_out_starts)
    if trainer.best is None and trainer.global_step == 0:
        trainer.save_best(improvement(baseline, baseline))
    for batch in trainer.batches(starts):
        trainer.step(model.loss, batch, world)
        if trainer.every(config.train.eval_every):
            with trainer.ema_model() as ema_model:
                rewards = imagined_rewards(ema_model, world, held_out_starts)
            trainer.save_best(improvement(rewards, baseline))


def train_goal_policy(config: Config, context: ControllerContext) -> None:
    """Learn in imagination to reach goals; best.pt ends nearest to held-out goals."""
    world = context.world
    model = cast(GoalPolicy, context.build(config.goal_policy, config.goal_policy_train.seed))
    # an action before the start is known
    length, flag = max(world.context, 2) + model.max_goal_offset, "--goal-policy.max-goal-offset"
    train, held_out = (
        context.clips(split, length, model.needs, flag) for split in ("train", "validation")
    )
    summary = (
        f"goals up to {model.max_goal_offset} steps away, "
        f"{config.goal_policy_train.batch_size} starts"
    )
    training = Training(
        "goal_policy", model, config.goal_policy_train, "goal-policy-train", summary
    )
    indices, _ = sample_clips(held_out.clips, 256, seed=0)
    fit(config, context, training, train, held_out.batch(indices), world)


def train_task_cost(config: Config, context: ControllerContext) -> None:
    """Learn from rewards and states what the task costs; best.pt reads held-out frames best."""
    dataset = context.dataset
    names = dataset.state_names if dataset.has("states") else ()
    if not dataset.has("rewards"):
        raise ValueError(
            f"{dataset.folder} has no rewards, and what the task costs is learned from them; leave "
            f"task_cost out of --methods"
        )
    described = replace(config.task_cost, state_names=names)
    model = context.build(described, config.task_cost_train.seed)
    train, held_out = (
        context.clips(split, model.clip_length, model.needs, "--task-cost.action-block")
        for split in ("train", "validation")
    )
    summary = f"{len(train)} clips, {len(names)} numbers of a state"
    training = Training("task_cost", model, config.task_cost_train, "task-cost-train", summary)
    # rewarded frames are rare: of the held-out ones, too, half are drawn by their reward
    indices, _ = sample_clips(held_out.clips, 8192, seed=0)
    fit(config, context, training, RewardedClips(train), RewardedClips(held_out).batch(indices))


def train_flow_policy(config: Config, context: ControllerContext) -> None:
    """Imitate the demonstrations in chunks of actions."""
    model = context.build(config.flow_policy, config.flow_policy_train.seed)
    demos, held_out = (
        context.demos(split, config.flow_min_reward, model.clip_length)
        for split in ("train", "validation")
    )
    indices = np.linspace(0, len(held_out) - 1, min(2048, len(held_out))).astype(np.int64)
    summary = f"{len(demos)} steps of {demos.num_episodes} episodes, chunks of {model.clip_length}"
    training = Training(
        "flow_policy", model, config.flow_policy_train, "flow-policy-train", summary
    )
    fit(config, context, training, demos, held_out.batch(indices))


@dataclass(frozen=True)
class Training:
    """What is trained, and how."""

    folder: str
    """Under RUN/controller."""
    model: TrainedController
    config: TrainConfig
    flag_prefix: str
    data_summary: str


def fit(
    config: Config,
    context: ControllerContext,
    training: Training,
    data: ClipBatches | RewardedClips | DemoSteps,
    held_out: Batch,
    *inputs: World,
) -> None:
    """Train on `data`; best.pt is the best on `held_out`, with the same random numbers each time.

    inputs: the world, for a loss that imagines.
    """
    train, model = training.config, training.model
    if type(model).begin is not TrainedController.begin:
        model.begin(sample_of(data, train.seed))
    trainer = Trainer(
        "controller",
        config.run / "controller" / training.folder,
        model,
        train,
        context.describe(model.config),
        restart=config.restart,
        flag_prefix=training.flag_prefix,
        data_summary=training.data_summary,
    )
    model.load_codebook(context.world)  # the weights that it resumed may be of an earlier one
    held_out = held_out.to(trainer.device)
    if isinstance(data, ClipBatches):
        trainer.cache_on_device(data)
    for batch in trainer.batches(data):
        trainer.step(model.loss, batch, *inputs)
        if trainer.every(train.eval_every):
            with trainer.ema_model() as ema_model, torch.random.fork_rng():
                torch.manual_seed(0)
                trainer.save_best(ema_model.validate(held_out, *inputs))


# A new method is one line here.
METHODS: dict[Method, Callable[[Config, ControllerContext], None]] = {
    "bc": train_bc,
    "actor_critic": train_actor_critic,
    "goal_policy": train_goal_policy,
    "task_cost": train_task_cost,
    "flow_policy": train_flow_policy,
}


if __name__ == "__main__":
    from pipeline.cli import run_cli

    run_cli(main, Config, "controller")
