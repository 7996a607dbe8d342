"""What the parts of an evaluation share: the run, the recordings, a ruler, simulators."""

from __future__ import annotations

import platform
from collections.abc import Callable
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch

import kernels
from data.build_shards import available_cpus
from data.clips import Clips
from data.pusht import simulator
from data.pusht.vector_pusht import VectorPushT
from data.shards import EpisodeDataset, read_build_info, shards_folder
from evaluation.protocols import policies
from evaluation.protocols.mpc import LastActionProbe
from evaluation.protocols.oracle_cem import OracleCem
from evaluation.protocols.policies import Policy, WorldModelPolicy
from evaluation.readers.estimator import StateEstimator
from evaluation.readers.fit_estimator import cached_estimator
from evaluation.readers.fit_inverse_dynamics import cached_idm
from evaluation.readers.inverse_dynamics import InverseDynamics
from pipeline import checkpoint
from pipeline.device import describe_device, pick_device
from pipeline.inference.aot_inductor import pick_compile_fn
from pipeline.inference.load import load_controllers, load_goal_policy, load_world
from pipeline.lock import lock

STAGES = ("tokenizer", "dynamics", "controller")


class Session:
    """A run on recordings. Opening it checks what is cheap; the rest is made when asked for."""

    def __init__(
        self,
        run: Path,
        shards: Path | None,
        out: Path | None,
        num_workers: int,
        num_envs: int,
        compiled: bool = False,
    ) -> None:
        """workers: processes, 0 for one on each core; simulators: at a time, in all of them;
        compiled: the world's steps, on a CPU, with other last digits."""
        self.run, self.num_envs, self.compiled = run, num_envs, compiled
        own_shards = run / "shards"
        shards = shards and shards_folder(shards)
        self.device = pick_device()
        self.kernels = kernels.describe(self.device)
        self.dataset = EpisodeDataset(shards or own_shards)
        if compiled and self.device.type != "cpu":
            raise ValueError("--compile compiles for CPUs, and this is a GPU; leave it out")
        self.world = load_world(run, self.device)
        if compiled:
            self.world.compile_steps(pick_compile_fn(self.device))
        self.controllers = load_controllers(run, self.world)
        self.goal_policy = load_goal_policy(run, self.world)
        self._results: dict[tuple[str, str], dict[str, Any]] = {}
        self.num_workers = num_workers or available_cpus()
        where = self.dataset.folder
        self.world.actions.check_same(self.dataset.actions, f"{run}'s world", str(where))
        if tuple(self.world.tokenizer.image_size) != self.dataset.image_size:
            raise ValueError(
                f"{run}'s world has frames of {tuple(self.world.tokenizer.image_size)} pixels and "
                f"{where} of {self.dataset.image_size}; preprocess them at the same resolution"
            )
        other_dataset = shards is not None and shards.resolve() != own_shards.resolve()
        subfolder = "report" if not other_dataset else f"report/on-{_dataset_name(where)}"
        self.folder = out or run / subfolder
        self.folder.mkdir(parents=True, exist_ok=True)
        self.plots = self.folder / "plots"
        self._exit_stack = ExitStack()
        self._exit_stack.enter_context(lock(self.folder))

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *error: Any) -> None:
        self._exit_stack.close()

    def clips(self, frames: int) -> Clips:
        """Windows of held-out episodes."""
        return Clips(self.dataset, "test", clip_length=frames)

    def estimator(self, steps: int, seed: int) -> StateEstimator | None:
        """The ruler of these recordings, or of the run's own where all of these are held out."""
        path = self.folder / "estimator.pt"
        return cached_estimator(path, self.train_dataset, steps, seed, device=self.device)

    def idm(self, steps: int, seed: int) -> InverseDynamics:
        """What reads actions from pairs of frames, for codes that have factors."""
        path = self.folder / "inverse.pt"
        return cached_idm(path, self.train_dataset, steps, seed, device=self.device)

    @cached_property
    def train_dataset(self) -> EpisodeDataset:
        """Recordings with training episodes: these, or the run's own where these have none."""
        train_episodes = self.dataset.episodes("train")
        return self.dataset if train_episodes else EpisodeDataset(self.run / "shards")

    @property
    def is_pusht(self) -> bool:
        """The recordings are of the world that has the protocols (the toy shares its actions)."""
        toy = str(self.dataset.description.get("source")).startswith("toy")
        return self.dataset.actions == simulator.ACTIONS and not toy

    @property
    def has_goals(self) -> bool:
        """Held-out states are known, from which and to which a simulator can be set."""
        names = self.dataset.state_names == tuple(simulator.STATE_NAMES)
        return self.is_pusht and names and self.dataset.has("states")

    @cached_property
    def envs(self) -> VectorPushT:
        """Simulators over processes, started when first needed."""
        size = self.dataset.image_size[0]
        return self._exit_stack.enter_context(VectorPushT(self.num_envs, size, self.num_workers))

    @cached_property
    def last_action_probe(self) -> LastActionProbe:
        """Where the hand is, read from the world's latents."""
        return LastActionProbe(self.world, self.train_dataset)

    @cached_property
    def fingerprints(self) -> dict[str, str | None]:
        fingerprints: dict[str, str | None] = {"shards": self.dataset.fingerprint}
        for stage in STAGES:
            fingerprints[stage] = self._load_checkpoint(self.run / stage / "best.pt", stage).get(
                "fingerprint"
            )
        bc_path = self.run / "controller" / "cloning" / "best.pt"
        fingerprints["cloning"] = self._load_checkpoint(bc_path, "controller").get("fingerprint")
        fingerprints["controller"] = fingerprints["controller"] or fingerprints["cloning"]
        goal_policy_path = self.run / "controller" / "goals" / "best.pt"
        fingerprints["amortised"] = self._load_checkpoint(goal_policy_path, "controller").get(
            "fingerprint"
        )
        return fingerprints

    def _load_checkpoint(self, path: Path, stage: str) -> dict[str, Any]:
        return checkpoint.load(path, stage) if path.exists() else {}

    def task_policies(self, seed: int) -> dict[str, Policy]:
        """Controllers of the run, and what they stand beside."""
        return {
            "random": policies.Random(self.dataset.actions, seed),
            "still": policies.NoOp(),
            "scripted": policies.Scripted(),
            **{name: WorldModelPolicy(self.world, each) for name, each in self.controllers.items()},
        }

    def goal_policies(self, seed: int, num_samples: int, num_iterations: int) -> dict[str, Policy]:
        """As in the task, with what knows the goal; the controllers do not."""
        return {
            "random": policies.Random(self.dataset.actions, seed),
            "still": policies.NoOp(),
            "agent_only": policies.GoalAgentPosition(),
            "simulator": OracleCem(lambda: self.envs, num_samples, num_iterations, seed=seed),
            **{name: WorldModelPolicy(self.world, each) for name, each in self.controllers.items()},
        }

    def play_cached(
        self, protocol: str, policy: str, play: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        """Play a protocol, but not again for a controller that is the clone: where no update was
        better, its weights, and so all that it does, are the clone's."""
        name = "cloning" if policy == "controller" and self._equals_bc else policy
        if (protocol, name) not in self._results:
            self._results[protocol, name] = play()
        return self._results[protocol, name]

    @cached_property
    def _equals_bc(self) -> bool:
        """Whether the controller's policy has the weights of the clone that it began as."""
        controller, bc = (self.controllers.get(name) for name in ("controller", "cloning"))
        if controller is None or bc is None:
            return False
        own_weights = getattr(controller, "policy", controller).state_dict()
        bc_weights = bc.state_dict()
        return own_weights.keys() == bc_weights.keys() and all(
            torch.equal(own_weights[n], bc_weights[n]) for n in bc_weights
        )

    def depends_on(self, policy: str) -> tuple[str, ...]:
        """The fingerprints that a policy's figures hang on."""
        controllers = {name: (name,) for name in (*self.controllers, "amortised")}
        dependencies = {"planner": (), "guided": ("amortised",)} | controllers
        return ("tokenizer", "dynamics", *dependencies[policy]) if policy in dependencies else ()

    def cache_key(self, *names: str, **settings: Any) -> dict[str, Any]:
        """What a part depends on: fingerprints by name, and settings."""
        compiled = {"compiled": True} if self.compiled else {}
        return {name: self.fingerprints[name] for name in ("shards", *names)} | settings | compiled

    def stage_seconds(self) -> dict[str, float | None]:
        """Seconds of training of each stage, all its methods together, as last checkpoints say."""
        stage_seconds: dict[str, float | None] = {
            "preprocess": _preprocess_seconds(self.run / "shards")
        }
        for stage in STAGES:
            folder = self.run / stage
            paths = list(folder.glob("**/last.pt")) or list(folder.glob("**/best.pt"))
            seconds = [float(self._load_checkpoint(path, stage)["seconds"]) for path in paths]
            stage_seconds[stage] = round(sum(seconds), 1) if seconds else None
        return stage_seconds

    def describe(self) -> str:
        """One line at the start."""
        return (
            f"evaluate: {describe_device(self.device)}, {self.kernels}, "
            f"{self.run} on {self.dataset.folder} "
            f"({len(self.dataset.episodes('test'))} held-out episodes), controllers: "
            f"{', '.join(self.controllers) or 'none'}"
        )

    def provenance(self) -> dict[str, Any]:
        """Say what, on what and with what this was measured."""
        return {
            "run": str(self.run),
            "recordings": str(self.dataset.folder),
            "device": describe_device(self.device),
            "kernels": self.kernels,
            "cores": self.num_workers,
            "compiled": self.compiled,
            "versions": {
                "python": platform.python_version(),
                "torch": str(torch.__version__),
                "numpy": np.__version__,
                "gymnasium": gymnasium.__version__,
                "platform": platform.platform(),
            },
            "fingerprints": self.fingerprints,
            "methods": {stage: self._method(stage) for stage in STAGES},
        }

    def _method(self, stage: str) -> str | None:
        """What was trained; a frozen backbone with where it is from, `random` if from nowhere."""
        config = self._load_checkpoint(self.run / stage / "best.pt", stage).get("config", {})
        parts = (str(config[key]) for key in ("kind", "weights") if key in config)
        return ", ".join(parts) or None


def _dataset_name(folder: Path) -> str:
    """Name recordings by their run, or by their folder where it is not a run's."""
    folder = folder.resolve()
    return folder.parent.name if folder.name == "shards" else folder.name


def _preprocess_seconds(shards: Path) -> float | None:
    try:
        return (read_build_info(shards) or {}).get("seconds")
    except ValueError:  # damaged; nothing else is asked of it where others are measured
        return None
