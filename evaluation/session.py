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
from data.build_shards import cores
from data.clips import Clips
from data.pusht import simulator
from data.pusht.vector_pusht import SimulatorPool
from data.shards import Recordings, read_build, shards_of
from evaluation.protocols import policies
from evaluation.protocols.mpc import Hand
from evaluation.protocols.oracle_cem import SimulatorPlanner
from evaluation.protocols.policies import InWorld, Policy
from evaluation.readers.estimator import Estimator
from evaluation.readers.fit_estimator import cached_estimator
from evaluation.readers.fit_inverse_dynamics import cached_inverse
from evaluation.readers.inverse_dynamics import Inverse
from pipeline import checkpoint
from pipeline.device import describe_device, pick_device
from pipeline.inference.aot_inductor import compiler_for
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
        workers: int,
        simulators: int,
        compiled: bool = False,
    ) -> None:
        """workers: processes, 0 for one on each core; simulators: at a time, in all of them;
        compiled: the world's steps, on a CPU, with other last digits."""
        self.run, self.simulators, self.compiled = run, simulators, compiled
        own = run / "shards"
        shards = shards and shards_of(shards)
        self.device = pick_device()
        self.kernels = kernels.describe(self.device)
        self.recordings = Recordings(shards or own)
        if compiled and self.device.type != "cpu":
            raise ValueError("--compile compiles for CPUs, and this is a GPU; leave it out")
        self.world = load_world(run, self.device)
        if compiled:
            self.world.compile_steps(compiler_for(self.device))
        self.controllers = load_controllers(run, self.world)
        self.goal_policy = load_goal_policy(run, self.world)
        self._played: dict[tuple[str, str], dict[str, Any]] = {}
        self.workers = workers or cores()
        where = self.recordings.folder
        self.world.actions.check_same(self.recordings.actions, f"{run}'s world", str(where))
        if tuple(self.world.tokenizer.image_size) != self.recordings.image_size:
            raise ValueError(
                f"{run}'s world has frames of {tuple(self.world.tokenizer.image_size)} pixels and "
                f"{where} of {self.recordings.image_size}; preprocess them at the same resolution"
            )
        elsewhere = shards is not None and shards.resolve() != own.resolve()
        place = "report" if not elsewhere else f"report/on-{_name(where)}"
        self.folder = out or run / place
        self.folder.mkdir(parents=True, exist_ok=True)
        self.plots = self.folder / "plots"
        self._open = ExitStack()
        self._open.enter_context(lock(self.folder))

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *error: Any) -> None:
        self._open.close()

    def clips(self, frames: int) -> Clips:
        """Windows of held-out episodes."""
        return Clips(self.recordings, "test", frames=frames)

    def estimator(self, steps: int, seed: int) -> Estimator | None:
        """The ruler of these recordings, or of the run's own where all of these are held out."""
        path = self.folder / "estimator.pt"
        return cached_estimator(path, self.to_learn_from, steps, seed, device=self.device)

    def inverse(self, steps: int, seed: int) -> Inverse:
        """What reads actions from pairs of frames, for codes that have factors."""
        path = self.folder / "inverse.pt"
        return cached_inverse(path, self.to_learn_from, steps, seed, device=self.device)

    @cached_property
    def to_learn_from(self) -> Recordings:
        """Recordings with training episodes: these, or the run's own where these have none."""
        known = self.recordings.episodes("train")
        return self.recordings if known else Recordings(self.run / "shards")

    @property
    def is_pusht(self) -> bool:
        """The recordings are of the world that has the protocols (the toy shares its actions)."""
        toy = str(self.recordings.description.get("source")).startswith("toy")
        return self.recordings.actions == simulator.ACTIONS and not toy

    @property
    def has_goals(self) -> bool:
        """Held-out states are known, from which and to which a simulator can be set."""
        names = self.recordings.state_names == tuple(simulator.STATE_NAMES)
        return self.is_pusht and names and self.recordings.has("states")

    @cached_property
    def pool(self) -> SimulatorPool:
        """Simulators over processes, started when first needed."""
        size = self.recordings.image_size[0]
        return self._open.enter_context(SimulatorPool(self.simulators, size, self.workers))

    @cached_property
    def hand(self) -> Hand:
        """Where the hand is, read from the world's latents."""
        return Hand(self.world, self.to_learn_from)

    @cached_property
    def fingerprints(self) -> dict[str, str | None]:
        found: dict[str, str | None] = {"shards": self.recordings.fingerprint}
        for stage in STAGES:
            found[stage] = self._says(self.run / stage / "best.pt", stage).get("fingerprint")
        cloning = self.run / "controller" / "cloning" / "best.pt"
        found["cloning"] = self._says(cloning, "controller").get("fingerprint")
        found["controller"] = found["controller"] or found["cloning"]
        goals = self.run / "controller" / "goals" / "best.pt"
        found["amortised"] = self._says(goals, "controller").get("fingerprint")
        return found

    def _says(self, path: Path, stage: str) -> dict[str, Any]:
        return checkpoint.load(path, stage) if path.exists() else {}

    def task_policies(self, seed: int) -> dict[str, Policy]:
        """Controllers of the run, and what they stand beside."""
        return {
            "random": policies.Random(self.recordings.actions, seed),
            "still": policies.Still(),
            "scripted": policies.Scripted(),
            **{name: InWorld(self.world, each) for name, each in self.controllers.items()},
        }

    def goal_policies(self, seed: int, samples: int, iterations: int) -> dict[str, Policy]:
        """As in the task, with what knows the goal; the controllers do not."""
        return {
            "random": policies.Random(self.recordings.actions, seed),
            "still": policies.Still(),
            "agent_only": policies.AgentOnly(),
            "simulator": SimulatorPlanner(lambda: self.pool, samples, iterations, seed=seed),
            **{name: InWorld(self.world, each) for name, each in self.controllers.items()},
        }

    def once(
        self, protocol: str, policy: str, play: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        """Play a protocol, but not again for a controller that is the clone: where no update was
        better, its weights, and so all that it does, are the clone's."""
        name = "cloning" if policy == "controller" and self._still_clone else policy
        if (protocol, name) not in self._played:
            self._played[protocol, name] = play()
        return self._played[protocol, name]

    @cached_property
    def _still_clone(self) -> bool:
        """Whether the controller's policy has the weights of the clone that it began as."""
        controller, clone = (self.controllers.get(name) for name in ("controller", "cloning"))
        if controller is None or clone is None:
            return False
        mine = getattr(controller, "policy", controller).state_dict()
        known = clone.state_dict()
        return mine.keys() == known.keys() and all(torch.equal(mine[n], known[n]) for n in known)

    def depends_on(self, policy: str) -> tuple[str, ...]:
        """The fingerprints that a policy's figures hang on."""
        own = {name: (name,) for name in (*self.controllers, "amortised")}
        made_by = {"planner": (), "guided": ("amortised",)} | own
        return ("tokenizer", "dynamics", *made_by[policy]) if policy in made_by else ()

    def made_from(self, *what: str, **settings: Any) -> dict[str, Any]:
        """What a part depends on: fingerprints by name, and settings."""
        how = {"compiled": True} if self.compiled else {}
        return {name: self.fingerprints[name] for name in ("shards", *what)} | settings | how

    def stage_seconds(self) -> dict[str, float | None]:
        """Seconds of training of each stage, all its methods together, as last checkpoints say."""
        found: dict[str, float | None] = {"preprocess": _preprocess_seconds(self.run / "shards")}
        for stage in STAGES:
            folder = self.run / stage
            paths = list(folder.glob("**/last.pt")) or list(folder.glob("**/best.pt"))
            seconds = [float(self._says(path, stage)["seconds"]) for path in paths]
            found[stage] = round(sum(seconds), 1) if seconds else None
        return found

    def about(self) -> str:
        """One line at the start."""
        return (
            f"evaluate: {describe_device(self.device)}, {self.kernels}, "
            f"{self.run} on {self.recordings.folder} "
            f"({len(self.recordings.episodes('test'))} held-out episodes), controllers: "
            f"{', '.join(self.controllers) or 'none'}"
        )

    def provenance(self) -> dict[str, Any]:
        """Say what, on what and with what this was measured."""
        return {
            "run": str(self.run),
            "recordings": str(self.recordings.folder),
            "device": describe_device(self.device),
            "kernels": self.kernels,
            "cores": self.workers,
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
        config = self._says(self.run / stage / "best.pt", stage).get("config", {})
        said = (str(config[key]) for key in ("kind", "weights") if key in config)
        return ", ".join(said) or None


def _name(folder: Path) -> str:
    """Name recordings by their run, or by their folder where it is not a run's."""
    folder = folder.resolve()
    return folder.parent.name if folder.name == "shards" else folder.name


def _preprocess_seconds(shards: Path) -> float | None:
    try:
        return (read_build(shards) or {}).get("seconds")
    except ValueError:  # damaged; nothing else is asked of it where others are measured
        return None
