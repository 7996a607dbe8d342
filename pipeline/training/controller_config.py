"""What stage 4 trains, how, and whether a run has what that needs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from data.pusht.task_goal import goals_of
from data.ranges import MAX_WORKERS, CheckedConfig, NonEmpty, Range
from data.shards.episode_dataset import EpisodeDataset
from kernels import Backend
from models import registry
from models.controllers.actor_critic import ActorCriticConfig
from models.controllers.canonical_policy import CanonicalPolicyConfig
from models.controllers.distilled_policy import DistilledPolicyConfig
from models.controllers.flow_policy import FlowPolicyConfig, whole_blocks
from models.controllers.policy import PolicyConfig
from models.controllers.task_cost import TaskCostConfig
from models.registry import DataSpec, MethodConfig
from models.world import World
from pipeline import checkpoint as ckpt
from pipeline.batches.demonstrations import demo_rows
from pipeline.device import DeviceOption
from pipeline.lineage import check_parent
from pipeline.training.train_config import TrainConfig

Method = Literal[
    "bc",
    "actor_critic",
    "goal_policy",
    "task_cost",
    "flow_policy",
    "canonical_policy",
    "distilled_policy",
]
DEMOS_FROM: dict[Method, str] = {
    "bc": "min_reward",
    "actor_critic": "min_reward",
    "flow_policy": "flow_min_reward",
    "canonical_policy": "flow_min_reward",
    "distilled_policy": "flow_min_reward",
}
"""The reward that an episode reaches to be a demonstration, by what learns from it."""
FROM_REWARDS = ("actor_critic", "task_cost", "canonical_policy", "distilled_policy")


@dataclass(frozen=True)
class Config(CheckedConfig):
    run: Path = Path("runs/pusht")
    """Folder of the world model; all is read from there, and the controllers written."""
    methods: Annotated[tuple[Method, ...], NonEmpty()] = ("bc", "actor_critic")
    """What to fit, in this order: a clone of the demonstrations; from there, actor-critic in
    imagination; a policy that is given goals and learns in imagination to reach them."""
    model: MethodConfig = field(default_factory=lambda: registry.default_config("actor_critic"))
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
    canonical_policy: CanonicalPolicyConfig = field(
        default_factory=lambda: CanonicalPolicyConfig(
            encoder=PolicyConfig(hidden_dim=256, dropout=0.0), num_layers=2, latent_noise_std=0.01
        )
    )
    """The same of any goal: it sees states and actions from there."""
    canonical_policy_train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            steps=6000,
            batch_size=256,
            learning_rate=2e-3,
            warmup_steps=200,
            weight_decay=0.01,
            beta2=0.99,
            eval_every=6000,
        )
    )
    """Training of the canonical policy, of the demonstrations that the flow policy has, too."""
    distilled_policy: DistilledPolicyConfig = field(default_factory=DistilledPolicyConfig)
    """Policy without search that learns from a search in imagination."""
    distilled_policy_train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            steps=800,
            batch_size=16,
            learning_rate=5e-4,
            warmup_steps=50,
            weight_decay=0.01,
            beta2=0.99,
            eval_every=800,
            save_every=100,
        )
    )
    """Training of the distilled policy; a batch has so many starts.  It is validated at the end."""
    device: DeviceOption = "auto"
    """Where to run: a CUDA GPU if there is one, else Apple's (mps), else the CPU."""
    kernels: Backend = "auto"
    """Run operations as Triton kernels, as PyTorch, or as what was measured faster on this GPU."""
    live: Annotated[int, Range(0, 65535)] = 0
    """Port of a page that follows the training at 127.0.0.1; 0 is no page."""
    num_processes: Annotated[int, Range(1, MAX_WORKERS)] = 1
    """Processes that train methods side by side on a CPU, each with its share of the cores; methods
    that start from one another go to the same one."""
    restart: bool = False
    """Start over, although there is a checkpoint to resume from."""

    @property
    def policy(self) -> PolicyConfig:
        """Of the actor-critic, and of the clone that it starts from."""
        return cast(ActorCriticConfig, self.model).policy


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
    if world.has_rewards and {"bc", "flow_policy"} & set(methods) and dataset.all_zero("rewards"):
        print(f"controller: every reward of {dataset.folder} is 0: all its episodes are imitated")
    return methods


def why_not(config: Config, method: Method, world: World, dataset: EpisodeDataset) -> str:
    """Say what of the data a method lacks; nothing where it can be trained."""
    if method in FROM_REWARDS and not world.has_rewards:
        return f"the dynamics of {config.run} has no reward head (its dataset had no rewards)"
    if method in FROM_REWARDS and dataset.all_zero("rewards"):
        return f"every reward of {dataset.folder} is 0, which shows no goal"
    if method == "task_cost":
        rewards = dataset.read_rows("rewards", 0, dataset.num_frames)
        if rewards.min() == rewards.max():
            return f"every reward of {dataset.folder} is {rewards.max():g}, which shows no goal"
    if method != "canonical_policy" and "task_cost" in starts_from(config, method):
        goals = {tuple(note["goal"]) for note in dataset.notes if "goal" in note}
        if len(goals) > 1:
            return f"{dataset.folder} has {len(goals)} goals of episodes, and this learns one"
    if method == "canonical_policy" and goals_of(dataset) is None:
        return f"the goals of {dataset.folder} have no pose, which Push-T's have"
    if method in ("flow_policy", "canonical_policy"):
        try:
            for split in ("train", "validation"):
                demo_rows(dataset, split, config.flow_min_reward, "--flow-min-reward")
        except ValueError as problem:
            return str(problem)
    if method == "distilled_policy":
        needs = starts_from(config, method)
        reasons = [why_not(config, needed, world, dataset) for needed in needs]
        return next((reason for reason in reasons if reason), "")
    return ""


def starts_from(config: Config, method: Method) -> tuple[Method, ...]:
    """The methods of the run that have to be trained before this one."""
    if method == "distilled_policy":
        return config.distilled_policy.imitator, "task_cost"
    if method == "canonical_policy":
        return ("task_cost",)
    if method == "actor_critic":
        by_cost = cast(ActorCriticConfig, config.model).rewards == "task_cost"
        return ("bc", "task_cost") if by_cost else ("bc",)
    return ()


def groups_of(config: Config, methods: tuple[Method, ...]) -> list[list[Method]]:
    """Group methods of which one starts from another, in their order."""
    groups: list[list[Method]] = []
    for method in methods:
        needed = set(starts_from(config, method))
        linked = [group for group in groups if needed & set(group)]
        groups = [group for group in groups if group not in linked]
        joined: list[Method] = [m for group in linked for m in group]
        groups.append([*joined, method])
    return sorted(groups, key=lambda group: methods.index(group[0]))


def demo_settings(config: Config, method: Method) -> dict[str, float]:
    """Give what chooses the demonstrations of a method, by its name; nothing where it has none."""
    name = DEMOS_FROM.get(method)
    return {name: getattr(config, name)} if name else {}


def settings_of(config: Config, methods: tuple[Method, ...], method: Method) -> dict[str, Any]:
    """Give the settings of a method that is trained now, or was before."""
    if method in methods:
        return registry.describe(getattr(config, method))
    path = config.run / "controller" / method / "best.pt"
    return ckpt.load(path, "controller")["config"]


def check(
    config: Config,
    methods: tuple[Method, ...],
    data: DataSpec,
    dataset: EpisodeDataset,
    dynamics: ckpt.Checkpoint,
) -> None:
    """Raise ValueError now, not after hours of what comes before, where a method cannot be built
    for this world, what it starts from is missing or of another world, or there is nothing to
    clone."""
    models: dict[Method, MethodConfig] = {
        "bc": config.policy,
        "actor_critic": config.model,
        "goal_policy": config.goal_policy,
        "task_cost": config.task_cost,
        "flow_policy": config.flow_policy,
        "distilled_policy": config.distilled_policy,
    }
    for index, method in enumerate(methods):
        if method in models:
            registry.build_controller(models[method], data)
        for needed in starts_from(config, method):
            path = config.run / "controller" / needed / "best.pt"
            if needed in methods[:index]:
                continue
            if not path.exists():
                raise ValueError(
                    f"{path} is not there, and {method} starts from it; --methods "
                    f"{' '.join(starts_from(config, method))} {method} makes all"
                )
            below = config.run / "dynamics" / "best.pt"
            check_parent(ckpt.load(path, "controller"), path, dynamics, below)
    if "canonical_policy" in methods and "task_cost" not in methods:
        settings = settings_of(config, methods, "task_cost")
        if not settings.get("goal"):
            raise ValueError(
                f"the task cost of {config.run} knows no pose of its goal, and a canonical policy "
                f"moves goals there; --methods task_cost canonical_policy --restart makes both"
            )
    if "distilled_policy" in methods:
        imitator, cost = (
            settings_of(config, methods, needed)
            for needed in starts_from(config, "distilled_policy")
        )
        whole_blocks(imitator["chunk_length"], imitator["receding_horizon"], cost["action_block"])
    for split in ("train", "validation"):
        if {"bc", "actor_critic"} & set(methods):
            demo_rows(dataset, split, config.min_reward)
