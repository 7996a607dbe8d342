"""What an evaluation is asked for, and the presets of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from evaluation.measures.open_loop import HORIZONS
from evaluation.protocols import goals, task
from kernels import Kernels
from models.config import check_positive
from models.controllers.planner import PlannerConfig

Part = Literal[
    "tokenizer", "probe", "open_loop", "controllability", "imitation", "play", "task", "goal"
]
ProtocolName = Literal["first-hit", "strict", "chunk-end", "far", "far-strict", "task"]


@dataclass(frozen=True)
class Config:
    run: Path = Path("runs/pusht")
    """Folder of the run to measure."""
    shards: Path | None = None
    """Recordings to measure on, other than the run's own: their folder, or their run's; of the same
    action space and size."""
    out: Path | None = None
    """Folder of the report, if not RUN/report (with --shards: RUN/report/on-NAME)."""
    parts: tuple[Part, ...] = get_args(Part)
    """What to measure; the rest keeps its figures from before, if they still hold, or is null."""
    protocol: tuple[ProtocolName, ...] = ()
    """Only these protocols of the simulator, and nothing else."""
    policies: tuple[str, ...] = ()
    """Only these policies in the simulator, by their names in the report; all if none is named."""
    num_clips: int = 256
    """Windows of held-out episodes for the tokenizer, the open loop and controllability."""
    horizons: tuple[int, ...] = HORIZONS
    """Steps ahead at which imagination is compared with the truth."""
    estimator_steps: int = 400
    """Training steps of the state estimator."""
    idm_steps: int = 3000
    """Training steps of the inverse model, which reads actions from pairs of frames."""
    imitation_frames: int = 4000
    """Held-out frames on which controllers are compared with what was recorded."""
    num_videos: int = 4
    """Film strips in the report."""
    play_frames: int = 120
    """Frames over which the speed of play is measured."""
    task_episodes: int = 100
    """Episodes of each policy in the task protocol, of seeds from 100000."""
    task_max_steps: int = task.MAX_STEPS
    """Steps of an episode at most; the protocol's figure, less is only a trial."""
    goal_pairs: int = 500
    """Pairs of start and goal for each seed."""
    pair_seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the pair lists."""
    oracle_pairs: int = 50
    """Of the pairs, how many the true simulator is planned in: the upper bound is dear."""
    oracle_samples: int = 300
    """Candidate plans of an iteration in the true simulator."""
    oracle_iterations: int = 8
    """Iterations of a plan in the true simulator."""
    planner: PlannerConfig | None = None
    """Plan in the world itself, towards every goal (--preset goals)."""
    receding_horizon: int = goals.BUDGET // 2
    """Actions of such a plan that are carried out before what is left of it is revised."""
    prior_receding_horizon: int = 10
    """The same, where the controller for goals guides the search, which then takes less time."""
    num_workers: int = 0
    """Processes of simulators; 0 is one for each core."""
    compile: bool = False
    """Compile the world's steps, on a CPU: a minute or two the first time, and other last digits;
    for many pairs (docs/evaluate.md)."""
    kernels: Kernels = "auto"
    """Run operations as Triton kernels, as PyTorch, or as what was measured faster on this GPU."""
    seed: int = 0
    restart: bool = False
    """Measure again what has been measured."""


def check(config: Config) -> None:
    """Refuse, before anything is loaded, what measures nothing."""
    if config.num_videos < 0:
        raise ValueError(f"--films {config.num_videos} is below 0; 0 draws none")
    if not config.horizons or min(config.horizons) < 1:
        raise ValueError(f"--horizons {config.horizons} are no steps ahead; give each from 1 on")
    check_positive(
        config, "--", "windows", "estimator_steps", "inverse_steps", "imitation_frames",
        "play_frames", "task_episodes", "task_steps", "goal_pairs", "simulator_pairs",
        "simulator_samples", "simulator_iterations", "keep", "guided_keep",
    )  # fmt: skip


def _cpu(config: Config) -> Config:
    """Give the task its protocol, and goals a trial."""
    return replace(
        config,
        horizons=HORIZONS,
        estimator_steps=250,
        idm_steps=900,
        goal_pairs=30,
        pair_seeds=(0,),
        oracle_pairs=30,
        oracle_samples=48,
        oracle_iterations=4,
        planner=config.planner
        and replace(config.planner, num_samples=200, iterations=10, num_elites=20),
    )


def _minecraft(config: Config) -> Config:
    return replace(config, run=Path("runs/minecraft"), horizons=(1, 2, 4, 8, 12, 16, 24, 32))


PRESETS = {
    "pusht": lambda c: replace(c, horizons=(*HORIZONS, 25)),
    "high_res": lambda c: c,
    "tokens": lambda c: c,
    "goals": lambda c: replace(c, planner=PlannerConfig()),
    "dinov2": lambda c: replace(c, planner=PlannerConfig()),
    "latent": lambda c: replace(c, planner=PlannerConfig()),
    "minecraft": _minecraft,
    "minecraft-150m": _minecraft,
    "minecraft debug": lambda c: replace(
        c, windows=48, horizons=(1, 2, 4, 8, 16), films=2, play_frames=60, idm_steps=150
    ),
    "cpu": _cpu,
    "hour": lambda c: replace(_cpu(c), goal_pairs=100, pair_seeds=(0, 1, 2)),
    "debug": lambda c: replace(
        c,
        windows=8,
        horizons=(1, 2, 4),
        estimator_steps=4,
        idm_steps=4,
        imitation_frames=32,
        films=1,
        play_frames=10,
        task_episodes=2,
        task_max_steps=6,
        goal_pairs=2,
        pair_seeds=(0,),
        oracle_pairs=2,
        oracle_samples=4,
        oracle_iterations=2,
        planner=c.planner and replace(c.planner, num_samples=4, iterations=2, best=2),
    ),
}
