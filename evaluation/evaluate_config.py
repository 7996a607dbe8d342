"""What an evaluation measures, on what, and how often."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from evaluation.measures.open_loop import HORIZONS
from evaluation.protocols import goals, task
from kernels import Backend
from models.config import check_positive
from models.controllers.planner import PlannerConfig

Part = Literal[
    "tokenizer", "probe", "open_loop", "controllability", "imitation", "play", "task", "goal"
]
ProtocolName = Literal["first_hit", "strict", "chunk_end", "offset50", "offset50_strict", "task"]


@dataclass(frozen=True)
class Config:
    run: Path = Path("runs/pusht")
    """Folder of the run to measure."""
    shards: Path | None = None
    """Dataset to measure on, other than the run's own: its folder, or its run's; of the same action
    space and image size."""
    out: Path | None = None
    """Folder of the report, if not RUN/report (with --shards: RUN/report/on-NAME)."""
    parts: tuple[Part, ...] = get_args(Part)
    """What to measure; the rest keeps its earlier figures, if they still hold, or is null."""
    protocol: tuple[ProtocolName, ...] = ()
    """Only these protocols of the simulator, and nothing else."""
    policies: tuple[str, ...] = ()
    """Only these policies in the simulator, by their names in the report; all if none is named."""
    num_clips: int = 256
    """Held-out clips for the tokenizer, the open loop and controllability."""
    horizons: tuple[int, ...] = HORIZONS
    """Steps ahead at which the model rollout is compared with the true frames."""
    estimator_steps: int = 400
    """Training steps of the state estimator."""
    idm_steps: int = 3000
    """Training steps of the inverse dynamics model, which predicts actions from pairs of frames."""
    imitation_frames: int = 4000
    """Held-out frames on which controllers are compared with the actions of the dataset."""
    num_videos: int = 4
    """Video strips in the report."""
    play_frames: int = 120
    """Frames over which the speed of play is measured."""
    task_episodes: int = 100
    """Episodes of each policy in the task protocol, of seeds from 100000."""
    task_max_steps: int = task.MAX_STEPS
    """Most steps of a task episode; the default is the protocol's, fewer are only a trial."""
    goal_pairs: int = 500
    """Pairs of start and goal for each seed."""
    pair_seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the pair lists."""
    oracle_pairs: int = 50
    """Pairs that the true simulator is planned in: this upper bound is expensive."""
    oracle_samples: int = 300
    """Action sequences of an iteration in the true simulator."""
    oracle_iterations: int = 8
    """Iterations of a plan in the true simulator."""
    planner: PlannerConfig = field(default_factory=PlannerConfig)
    """Search in the world for actions that reach a goal, where its latents and its actions are
    continuous."""
    receding_horizon: int = goals.BUDGET // 2
    """Actions of a plan that are executed before replanning."""
    prior_receding_horizon: int = 10
    """The same, where the goal policy is the planner's policy prior and a plan is cheaper."""
    num_workers: int = 0
    """Processes of simulators; 0 is one for each core."""
    compile: bool = False
    """Compile the world's steps, on a CPU: a minute or two the first time, and other last digits;
    for many pairs (docs/evaluate.md)."""
    kernels: Backend = "auto"
    """Run operations as Triton kernels, as PyTorch, or as what was measured faster on this GPU."""
    seed: int = 0
    restart: bool = False
    """Measure again what has been measured."""


def check(config: Config) -> None:
    """Raise ValueError, before anything is loaded, for settings that measure nothing."""
    if config.num_videos < 0:
        raise ValueError(f"--num-videos {config.num_videos} is below 0; 0 draws none")
    if not config.horizons or min(config.horizons) < 1:
        raise ValueError(f"--horizons {config.horizons}: each must be 1 or more")
    check_positive(
        config, "--", "num_clips", "estimator_steps", "idm_steps", "imitation_frames",
        "play_frames", "task_episodes", "task_max_steps", "goal_pairs", "oracle_pairs",
        "oracle_samples", "oracle_iterations", "receding_horizon", "prior_receding_horizon",
    )  # fmt: skip
