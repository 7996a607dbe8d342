"""What the parts of an evaluation share: the run, the dataset, the readers, simulators."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

import kernels
from data.clips import Clips
from data.gym.env_group import EnvGroup, open_group
from data.gym.env_spec import EnvSpec, env_spec_of
from data.io.files import lock, writable_folder
from data.pusht import simulator
from data.pusht.vector_pusht import VectorPushT
from data.shards.build_info import shards_folder
from data.shards.build_shards import available_cpus
from data.shards.episode_dataset import EpisodeDataset
from evaluation.measures.world_clips import horizons_within, world_clips
from evaluation.protocols import policies
from evaluation.protocols.latent_policies import controller_policies
from evaluation.protocols.mpc import LastActionProbe
from evaluation.protocols.oracle_cem import OracleCem
from evaluation.protocols.policies import Policy
from evaluation.readers.estimator import StateEstimator
from evaluation.readers.fit_estimator import cached_estimator
from evaluation.readers.fit_inverse_dynamics import cached_idm
from evaluation.readers.inverse_dynamics import InverseDynamics
from evaluation.report.trained_on_note import trained_on_note
from models.action_map import ActionMap
from models.planning.plan import GoalPlanner
from models.planning.planner import can_plan
from models.world import World
from pipeline import checkpoint
from pipeline.device import describe_device, pick_device
from pipeline.inference.load_controllers import (
    PROPOSERS,
    load_canonical_policy,
    load_controllers,
    load_distilled_policy,
    load_flow_policy,
    load_goal_policy,
    load_task_cost,
)
from pipeline.inference.load_world import load_world
from pipeline.lineage import count_trained_on

STAGES = ("tokenizer", "dynamics", "controller")
CONTROLLERS = (
    "bc", "goal_policy", "task_cost", "flow_policy", "canonical_policy", "distilled_policy",
)  # fmt: skip
"""Folders within the controller stage's: methods next to the actor-critic, which has its own."""


# A trained controller that plans chunks of actions for the task, whatever goal it is given, is one
# line here: its name, as CONTROLLERS has it, and what loads it, None where it was not trained.
CHUNK_PLANNERS: dict[str, Callable[[Path, World], GoalPlanner | None]] = {
    "flow_policy": load_flow_policy,
    "canonical_policy": load_canonical_policy,
    "distilled_policy": load_distilled_policy,
}


class Session:
    """A run and a dataset. Opening it checks what is cheap; the rest is created when first used."""

    def __init__(
        self,
        run: Path,
        shards: Path | None,
        out: Path | None,
        num_workers: int,
        num_envs: int,
        compiled: bool = False,
        is_first: bool = True,
    ) -> None:
        """num_workers: processes, 0 for one on each core; num_envs: simulators in all of them;
        compiled: the world's steps are, on a CPU, with other last digits; is_first: of the
        processes that measure, the one that keeps others out of the folder."""
        self.run, self.num_envs, self.compiled = run, num_envs, compiled
        own_shards = run / "shards"
        shards = shards and shards_folder(shards)
        self.device = pick_device()
        self.kernels = kernels.describe(self.device)
        self.dataset = EpisodeDataset(shards or own_shards)
        where = self.dataset.folder
        if not self.dataset.episodes("test"):
            raise ValueError(
                f"{where} has no test episode to measure on; record at least 3 sources"
            )
        other_dataset = shards is not None and shards.resolve() != own_shards.resolve()
        subfolder = "report" if not other_dataset else f"report/on-{_dataset_name(where)}"
        self.folder = writable_folder(out or run / subfolder, "--out")
        self.plots = self.folder / "plots"
        if compiled and self.device.type != "cpu":
            raise ValueError("--compile compiles for CPUs, and this is a GPU; leave it out")
        self.world = load_world(run, self.device)
        if compiled:
            # the compiler takes a second to import
            from pipeline.inference.aot_inductor import pick_compile_fn

            self.world.compile_steps(pick_compile_fn(self.device))
        self.controllers = load_controllers(run, self.world)
        self.goal_policy = load_goal_policy(run, self.world)
        self.task_cost = load_task_cost(run, self.world)
        planners = {name: load(run, self.world) for name, load in CHUNK_PLANNERS.items()}
        self.chunk_planners = {name: p for name, p in planners.items() if p is not None}
        self._results: dict[tuple[str, str], dict[str, Any]] = {}
        self._gym_envs: EnvGroup | None = None
        self.num_workers = num_workers or available_cpus()
        if not self.world.infers_actions:  # or true actions are only measured by
            self.world.data_actions.check_same(self.dataset.actions, f"{run}'s world", str(where))
        if tuple(self.world.image_size) != self.dataset.image_size:
            raise ValueError(
                f"{run}'s world has frames of {tuple(self.world.image_size)} pixels and "
                f"{where} of {self.dataset.image_size}; preprocess them at the same resolution"
            )
        self._exit_stack = ExitStack()
        if is_first:
            self._exit_stack.enter_context(lock(self.folder, flag="--out"))

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *error: Any) -> None:
        self._exit_stack.close()

    def clips(self, clip_length: int) -> Clips:
        """Give the clips of held-out episodes."""
        return world_clips(self.world, self.dataset, "test", clip_length)

    def horizons(self, horizons: tuple[int, ...]) -> tuple[int, ...]:
        """Give the horizons that held-out episodes are long enough for, after the context."""
        return tuple(horizons_within(self.dataset, "test", self.world.context, horizons))

    def estimator(self, steps: int, seed: int) -> StateEstimator | None:
        """Give the state estimator of the dataset; None where its states are not known."""
        path = self.folder / "estimator.pt"
        return cached_estimator(path, self.train_dataset, steps, seed, device=self.device)

    def idm(self, steps: int, seed: int) -> InverseDynamics:
        """Give the inverse dynamics model of the dataset, for codes that have factors."""
        path = self.folder / "idm.pt"
        return cached_idm(path, self.train_dataset, steps, seed, device=self.device)

    @cached_property
    def train_dataset(self) -> EpisodeDataset:
        """The dataset, or the run's own where all its episodes are held out."""
        train_episodes = self.dataset.episodes("train")
        return self.dataset if train_episodes else EpisodeDataset(self.run / "shards")

    @property
    def is_pusht(self) -> bool:
        """The dataset is Push-T's, which has the protocols (the toy shares its actions)."""
        toy = str(self.dataset.description.get("source")).startswith("toy")
        return self.dataset.actions == simulator.ACTIONS and not toy

    @property
    def has_goals(self) -> bool:
        """Held-out states are known, to which a simulator can be set."""
        names = self.dataset.state_names == tuple(simulator.STATE_NAMES)
        return self.is_pusht and names and self.dataset.has("states")

    @property
    def can_plan(self) -> bool:
        """Planners can search in the world: its states and its actions are continuous."""
        return can_plan(self.world)

    @cached_property
    def envs(self) -> VectorPushT:
        """Simulators over processes, started when first used."""
        size = self.dataset.image_size[0]
        envs = VectorPushT(self.num_envs, size, self.num_workers, self.own_goal)
        return self._exit_stack.enter_context(envs)

    @cached_property
    def env_spec(self) -> EnvSpec | None:
        """The gymnasium environment that the dataset was recorded in, where it was."""
        return env_spec_of(self.dataset.description)

    def gym_envs(self, num_envs: int, max_steps: int) -> EnvGroup:
        """Open that environment as often, once for all policies; max_steps: of an episode."""
        if self._gym_envs is None:
            assert self.env_spec is not None
            limits = [n for n in (self.env_spec.max_episode_steps, max_steps) if n]
            spec = replace(self.env_spec, max_episode_steps=min(limits))
            self._gym_envs = open_group(spec, num_envs)
            self._exit_stack.callback(self._gym_envs.close)
            same = f"the environment {spec.id} of now"
            self.dataset.actions.check_same(self._gym_envs.actions, str(self.dataset.folder), same)
        return self._gym_envs

    @cached_property
    def last_action_probe(self) -> LastActionProbe:
        """Predicts the last action from the world's latents."""
        return LastActionProbe(self.world, self.train_dataset)

    @property
    def task_probe(self) -> LastActionProbe | None:
        """The same where a planner needs it: an action is a place, so an episode starts at one."""
        return self.last_action_probe if self.world.actions.pointer else None

    @cached_property
    def fingerprints(self) -> dict[str, str | None]:
        """Of the shards, of each stage, and of each policy that was trained."""
        fingerprints: dict[str, str | None] = {"shards": self.dataset.fingerprint}
        fingerprints |= {name: facts.get("fingerprint") for name, facts in self.checkpoints.items()}
        fingerprints["actor_critic"] = fingerprints["controller"]
        return fingerprints

    @cached_property
    def checkpoints(self) -> dict[str, dict[str, Any]]:
        """What each stage's best.pt, and that of each policy, says of itself, without its weights;
        empty where there is none."""
        folders = {stage: (stage, stage) for stage in STAGES}
        folders |= {name: (f"controller/{name}", "controller") for name in CONTROLLERS}
        return {
            name: read_facts(self.run / folder / "best.pt", stage)
            for name, (folder, stage) in folders.items()
        }

    @cached_property
    def trained_on(self) -> int | None:
        """The number of held-out episodes that a part of the world, or a policy, was trained on;
        None where a checkpoint does not remember its recordings."""
        measured = [facts for facts in self.checkpoints.values() if facts]
        return count_trained_on(measured, self.dataset, "test")

    @property
    def own_goal(self) -> np.ndarray:
        """Where the block belongs on Push-T, (3,) x, y, angle, by the dataset."""
        return simulator.goal_of(self.dataset.description)

    def task_policies(self, seed: int, action_map: ActionMap | None = None) -> dict[str, Policy]:
        """Give the run's controllers that do not plan, and their baselines."""
        return {
            "random": policies.Random(self.dataset.actions, seed),
            "noop": policies.NoOp(),
            "scripted": policies.Scripted(self.own_goal),
            **controller_policies(self.world, self.controllers, action_map),
        }

    def goal_policies(
        self, seed: int, num_samples: int, num_iterations: int, action_map: ActionMap | None = None
    ) -> dict[str, Policy]:
        """Give the run's controllers, which are given no goal, and the baselines."""
        return {
            "random": policies.Random(self.dataset.actions, seed),
            "noop": policies.NoOp(),
            "goal_agent_position": policies.GoalAgentPosition(),
            "oracle_cem": OracleCem(lambda: self.envs, num_samples, num_iterations, seed=seed),
            **controller_policies(self.world, self.controllers, action_map),
        }

    def play_cached(
        self, protocol: str, policy: str, play: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        """Play a protocol, but only once for an actor-critic with the weights of bc: where no
        update was better, both act alike."""
        name = self.played_as(policy)
        if (protocol, name) not in self._results:
            self._results[protocol, name] = play()
        return self._results[protocol, name]

    def played_as(self, policy: str) -> str:
        """Name the policy that acts as this one does."""
        return "bc" if policy == "actor_critic" and self._equals_bc else policy

    @cached_property
    def _equals_bc(self) -> bool:
        """The actor-critic's policy has the weights of bc, from which it started."""
        names = ("actor_critic", "bc")
        if any(name not in self.controllers for name in names):
            return False
        own_weights, bc_weights = (_policy_weights(self.controllers[name]) for name in names)
        return own_weights.keys() == bc_weights.keys() and all(
            torch.equal(own_weights[n], bc_weights[n]) for n in bc_weights
        )

    @property
    def embedding_stages(self) -> tuple[str, ...]:
        """The stages that the latents of a single frame depend on."""
        world = self.world
        return ("tokenizer",) if world.state_spec == world.latents else ("tokenizer", "dynamics")

    def depends_on(self, policy: str, protocol: str = "goal") -> tuple[str, ...]:
        """Name the fingerprints that a policy's figures depend on, in the task or towards goals."""
        controllers = {name: (name,) for name in (*CONTROLLERS, "actor_critic")}
        searches = {
            "planner": (),
            "policy_prior": ("goal_policy",),
            "best_of_n": PROPOSERS,
        }
        dependencies = searches | controllers
        towards_task = (
            "best_of_n", "planner", "policy_prior", "goal_policy", "oracle_cem", "canonical_policy",
            "distilled_policy",
        )  # fmt: skip
        task_cost = ("task_cost",) if protocol == "task" and policy in towards_task else ()
        if policy not in dependencies:
            return task_cost
        return ("tokenizer", "dynamics", *dependencies[policy], *task_cost)

    def cache_key(self, *names: str, **settings: Any) -> dict[str, Any]:
        """Give what a part depends on: fingerprints by name, and settings."""
        compiled = {"compiled": True} if self.compiled else {}
        return {name: self.fingerprints[name] for name in ("shards", *names)} | settings | compiled

    def describe(self) -> list[str]:
        """Give the lines that are printed at the start."""
        names = [*self.controllers, *(["goal_policy"] if self.goal_policy else [])]
        names += [*self.chunk_planners, *(["task_cost"] if self.task_cost else [])]
        lines = [
            f"evaluate: {describe_device(self.device)}, {self.kernels}, "
            f"{self.run} on {self.dataset.folder} "
            f"({len(self.dataset.episodes('test'))} held-out episodes), controllers: "
            f"{', '.join(names) or 'none'}"
        ]
        note = trained_on_note(self.trained_on, len(self.dataset.episodes("test")))
        return [*lines, f"evaluate: {note}"] if note else lines


def read_facts(path: Path, stage: str) -> dict[str, Any]:
    """Read a checkpoint without its weights; nothing where there is none."""
    if not path.exists():
        return {}
    large = ("model", "ema", "optimizer")
    return {k: v for k, v in checkpoint.load(path, stage).items() if k not in large}


def _policy_weights(controller: Any) -> dict[str, torch.Tensor]:
    """Give the weights of a policy, or of an actor-critic's policy."""
    return getattr(controller, "policy", controller).state_dict()


def _dataset_name(folder: Path) -> str:
    """Name a dataset by its run, or by its folder where that is not a run's."""
    folder = folder.resolve()
    return folder.parent.name if folder.name == "shards" else folder.name
