"""Stage 4: fit a light policy inside the world.

Reads   RUN/shards, RUN/tokenizer/best.pt and RUN/dynamics/best.pt.
Writes  RUN/controller/bc (behavior cloning) and, by actor-critic in imagination from there,
        RUN/controller: best.pt, last.pt, log.jsonl, tensorboard. With --preset keypoints also
        RUN/controller/goal_policy, a policy that is given a goal, RUN/controller/task_cost, what
        the task costs, RUN/controller/flow_policy, an imitator in chunks of actions. On request
        RUN/controller/canonical_policy, an imitator that knows every goal, and
        RUN/controller/distilled_policy, which learned from a search among the imitator's chunks.
Try     python train_controller.py --run runs/pusht --preset pusht cpu
Next    evaluate.py, play.py
"""

from __future__ import annotations

if __name__ in ("__main__", "__mp_main__"):  # a script, or a worker process of one
    from pipeline.startup import start

    start(__name__)

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from tqdm import tqdm

from data.batch import Batch
from data.io.files import writable_folder
from data.pusht.task_goal import goals_of
from data.shards.episode_dataset import EpisodeDataset
from evaluation.measures.sample_clips import sample_clips
from models.controllers.actor_critic import ActorCritic
from models.controllers.canonical_policy import CanonicalPolicy
from models.controllers.controller import TrainedController
from models.controllers.cost_reward import CostReward, RewardedWorld
from models.controllers.distilled_policy import DistilledPolicy
from models.controllers.goal_policy import GoalPolicy
from models.layers.precision import autocast
from models.planning.best_of_n import BestOfN
from models.registry import DataSpec
from models.world import World
from pipeline import checkpoint as ckpt
from pipeline.batches.clip_batches import ClipBatches
from pipeline.batches.demonstrations import DemoSteps, StartsWithDemos
from pipeline.batches.rewarded_clips import RewardedClips
from pipeline.batches.sample import sample_of
from pipeline.device import set_device
from pipeline.inference.load_controllers import (
    load_canonical_policy,
    load_flow_policy,
    load_task_cost,
)
from pipeline.inference.load_world import load_world
from pipeline.lineage import check_parent
from pipeline.side_by_side import SideBySide, Work
from pipeline.trained_on import check_parent_recordings
from pipeline.training.controller_config import (
    Config,
    Method,
    check,
    demo_settings,
    groups_of,
    possible_methods,
    starts_from,
)
from pipeline.training.controller_context import ControllerContext, check_recordings
from pipeline.training.imagined_rewards import imagined_rewards, improvement
from pipeline.training.train_config import TrainConfig
from pipeline.training.trainer import Trainer


def main(config: Config) -> None:
    set_device(config.device, config.kernels)
    most = len(groups_of(config, config.methods))
    with SideBySide(open_methods, config, config.num_processes, most) as beside:
        methods, context = prepare(config)
        groups = groups_of(config, methods)
        left: list[str] = list(methods)  # a bar of what another process does, too
        with tqdm(total=len(left), desc="methods", unit="method", disable=beside.count == 1) as bar:
            bar.set_postfix_str(", ".join(left))
            for name, printed in beside.share(groups, lambda name: METHODS[name](config, context)):
                if printed:
                    tqdm.write(printed)
                left.remove(name)
                bar.set_postfix_str(", ".join(left))
                bar.update()


@contextmanager
def open_methods(config: Config) -> Iterator[Work]:
    """Open what is trained in a process that is not the first."""
    set_device(config.device, config.kernels)
    _, context = prepare(config)
    yield lambda name: METHODS[name](config, context)


def prepare(config: Config) -> tuple[tuple[Method, ...], ControllerContext]:
    """Open the world and the dataset, and give the methods that they have all for."""
    dataset = EpisodeDataset(config.run / "shards")
    world = load_world(config.run)
    if world.infers_actions:
        raise ValueError(
            f"the world of {config.run} infers its own actions, and no controller can be trained "
            f"in such a world yet; play.py and evaluate.py act in it by buttons and a search"
        )
    methods = possible_methods(config, world, dataset)
    path = config.run / "dynamics" / "best.pt"
    dynamics = ckpt.load(path, "dynamics")
    recordings = check_recordings(config.run, dynamics, dataset)
    data = DataSpec(world.image_size, world.actions, world.state_spec)
    check(config, methods, data, dataset, dynamics)
    writable_folder(config.run / "controller")
    below = path, dynamics["fingerprint"]
    goals = goals_of(dataset)
    context = ControllerContext(config.run, world, dataset, dynamics, below, recordings, goals)
    return methods, context


def train_bc(config: Config, context: ControllerContext) -> None:
    """Fit the policy to the demonstrations."""
    demos, held_out = (context.demos(split, config.min_reward) for split in ("train", "validation"))
    indices = np.linspace(0, len(held_out) - 1, min(2048, len(held_out))).astype(np.int64)
    model = context.build(config.policy, config.bc.seed)
    summary = (
        f"bc: {len(demos)} steps of {demos.num_episodes} episodes; dynamics has "
        f"{context.world.num_parameters / 1e6:.2f} M"
    )
    training = Training("bc", model, config.bc, "bc", summary)
    fit(config, context, training, demos, held_out.batch(indices))


def train_actor_critic(config: Config, context: ControllerContext) -> None:
    """Start from the best cloned policy, and train actor-critic on model rollouts."""
    model = cast(ActorCritic, context.build(config.model, config.train.seed))
    world = rewarded_world(model, config.run, context.world)
    path = config.run / "controller" / "bc" / "best.pt"
    bc = ckpt.load(path, "controller")
    below = context.parent[0]
    check_parent(bc, path, ckpt.load(below, "dynamics"), below)
    check_parent_recordings(bc, path, context.recordings, context.dataset)
    ckpt.restore(model.policy, bc, path)
    clone = copy.deepcopy(model).eval()
    trainer = Trainer(
        "controller",
        config.run / "controller",
        model,
        config.train,
        context.describe(config.model, demo_settings(config, "actor_critic"))
        | trained_before(config, "actor_critic"),
        restart=config.restart,
        data_summary=f"actor-critic, {config.train.batch_size} starts x "
        f"{model.config.horizon} steps",
    )
    if trainer.finished:
        return trainer.log_finished()
    model.load_codebook(context.world)  # the weights that it resumed may be of an earlier one
    starts = StartsWithDemos(
        context.clips("train", context.world.start_frames, model.needs),
        context.demos("train", config.min_reward),
    )
    held_out = context.clips("validation", context.world.start_frames, model.needs)
    indices, _ = sample_clips(held_out.clips, 64, seed=0)
    held_out_starts = held_out.batch(indices).to(trainer.device)
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


def rewarded_world(model: ActorCritic, run: Path, world: World) -> RewardedWorld:
    """The world that the actor-critic learns in, with the rewards that its config names."""
    if model.config.rewards == "world":
        return world
    task_cost = load_task_cost(run, world)
    assert task_cost is not None  # `check` has looked
    return CostReward(world, task_cost)


def train_goal_policy(config: Config, context: ControllerContext) -> None:
    """Learn in imagination to reach goals; best.pt ends nearest to held-out goals."""
    world = context.world
    model = cast(GoalPolicy, context.build(config.goal_policy, config.goal_policy_train.seed))
    # an action before the start is known
    length, flag = (
        max(world.start_frames, 2) + model.max_goal_offset,
        "--goal-policy.max-goal-offset",
    )
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
    home = context.home if names else ()
    described = replace(config.task_cost, state_names=names, goal=home)
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


def train_canonical_policy(config: Config, context: ControllerContext) -> None:
    """Imitate the demonstrations as they are seen from their goals, and so towards any goal."""
    task_cost = load_task_cost(config.run, context.world)
    assert task_cost is not None  # `check` has looked
    names, goal = task_cost.config.state_names, task_cost.config.goal
    train = config.canonical_policy_train
    described = replace(config.canonical_policy, state_names=names, goal=goal)
    model = cast(CanonicalPolicy, context.build(described, train.seed))
    demos, held_out = (
        context.demos_with_states(split, config.flow_min_reward, model.clip_length)
        for split in ("train", "validation")
    )
    indices = np.linspace(0, len(held_out) - 1, min(2048, len(held_out))).astype(np.int64)
    summary = f"{len(demos)} steps of {demos.num_episodes} episodes, chunks of {model.clip_length}"
    folder, prefix = "canonical_policy", "canonical-policy-train"
    training = Training(folder, model, train, prefix, summary, trained_before(config, folder))
    fit(config, context, training, demos, held_out.batch(indices))


def train_distilled_policy(config: Config, context: ControllerContext) -> None:
    """Teach the imitator to answer at once as a search among its answers does."""
    world, run = context.world, config.run
    by_name = {"flow_policy": load_flow_policy, "canonical_policy": load_canonical_policy}
    imitator = by_name[config.distilled_policy.imitator](run, world)
    task_cost = load_task_cost(run, world)
    assert imitator is not None and task_cost is not None  # `check` has looked
    block = task_cost.config.action_block
    expert = BestOfN(config.distilled_policy.expert, world, imitator, task_cost, block)
    train = config.distilled_policy_train
    model = cast(
        DistilledPolicy,
        context.build(config.distilled_policy.of(imitator.config), train.seed),
    )
    model.policy.load_state_dict(imitator.state_dict())
    if isinstance(model.policy, CanonicalPolicy):
        model.policy.read_with(task_cost)
    starts, held_out = (
        context.clips(split, world.start_frames, model.needs) for split in ("train", "validation")
    )
    demos = context.demos("train", config.flow_min_reward, imitator.horizon)
    indices, _ = sample_clips(held_out.clips, 256, seed=0)
    summary = (
        f"{train.batch_size} starts x {config.distilled_policy.num_decisions} decisions of an "
        f"expert with {expert.config.num_samples} chunks"
    )
    prefix, folder = "distilled-policy-train", "distilled_policy"
    training = Training(folder, model, train, prefix, summary, trained_before(config, folder))
    fit(config, context, training, StartsWithDemos(starts, demos), held_out.batch(indices), expert)


def trained_before(config: Config, method: Method) -> dict[str, Any]:
    """Say what a checkpoint of a method is made from: others of the run."""
    notes = {}
    for name in starts_from(config, method):
        path = config.run / "controller" / name / "best.pt"
        fingerprint = ckpt.load(path, "controller")["fingerprint"]
        notes[name] = {"path": str(path), "fingerprint": fingerprint}
    return notes


@dataclass(frozen=True)
class Training:
    """What is trained, and how."""

    folder: Method
    """Under RUN/controller."""
    model: TrainedController
    config: TrainConfig
    flag_prefix: str
    data_summary: str
    starts_from: dict[str, Any] = field(default_factory=dict)
    """Other checkpoints that it learns from, for its own to name."""


def fit(
    config: Config,
    context: ControllerContext,
    training: Training,
    data: ClipBatches | RewardedClips | DemoSteps | StartsWithDemos,
    held_out: Batch,
    *inputs: World | BestOfN,
) -> None:
    """Train on `data`; best.pt is the best on `held_out`, with the same random numbers each time.

    inputs: the world, for a loss that imagines, or the expert that searches in it.
    """
    train, model = training.config, training.model
    if type(model).begin is not TrainedController.begin:
        assert not isinstance(data, StartsWithDemos)
        model.begin(sample_of(data, train.seed))
    trainer = Trainer(
        "controller",
        config.run / "controller" / training.folder,
        model,
        train,
        context.describe(model.config, demo_settings(config, training.folder))
        | training.starts_from,
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
METHODS: dict[str, Callable[[Config, ControllerContext], None]] = {
    "bc": train_bc,
    "actor_critic": train_actor_critic,
    "goal_policy": train_goal_policy,
    "task_cost": train_task_cost,
    "flow_policy": train_flow_policy,
    "canonical_policy": train_canonical_policy,
    "distilled_policy": train_distilled_policy,
}


if __name__ == "__main__":
    from pipeline.cli import run_cli

    run_cli(main, Config, "controller")
