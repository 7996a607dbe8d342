"""What an evaluation measures, on what, and how often."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, get_args

from data.ranges import MAX_SEED, MAX_STEPS, MAX_WORKERS, CheckedConfig, NonEmpty, Range
from evaluation.measures.open_loop import HORIZONS
from evaluation.protocols import goals, returns, task
from kernels import Backend
from models.controllers.planner import PlannerConfig
from models.controllers.task_search import (
    TASK_PATIENCE,
    TASK_PLANNER,
    TASK_RECEDING_HORIZON,
    check_task_search,
)
from pipeline.device import DeviceOption

Part = Literal[
    "tokenizer",
    "probe",
    "open_loop",
    "controllability",
    "imitation",
    "play",
    "task",
    "goal",
    "returns",
]
ProtocolName = Literal[
    "first_hit", "strict", "chunk_end", "offset50", "offset50_strict", "task", "returns"
]


@dataclass(frozen=True)
class Config(CheckedConfig):
    run: Path = Path("runs/pusht")
    """Folder of the run to measure."""
    shards: Path | None = None
    """Dataset to measure on, other than the run's own: its folder, or its run's; of the same action
    space and image size."""
    out: Path | None = None
    """Folder of the report, if not RUN/report (with --shards: RUN/report/on-NAME)."""
    parts: Annotated[tuple[Part, ...], NonEmpty()] = get_args(Part)
    """What to measure; the rest keeps its earlier figures, if they still hold, or is null."""
    protocol: tuple[ProtocolName, ...] = ()
    """Only these protocols of the simulator, and nothing else."""
    policies: tuple[str, ...] = ()
    """Only these policies in the simulator, by their names in the report; all if none is named."""
    num_clips: Annotated[int, Range(1, 10**6)] = 256
    """Held-out clips for the tokenizer, the open loop and controllability."""
    horizons: Annotated[tuple[int, ...], Range(1, 10**4), NonEmpty()] = HORIZONS
    """Steps ahead at which the model rollout is compared with the true frames."""
    estimator_steps: Annotated[int, Range(1, MAX_STEPS)] = 400
    """Training steps of the state estimator."""
    idm_steps: Annotated[int, Range(1, MAX_STEPS)] = 3000
    """Training steps of the inverse dynamics model, which predicts actions from pairs of frames."""
    imitation_frames: Annotated[int, Range(1, 10**7)] = 4000
    """Held-out frames on which controllers are compared with the actions of the dataset."""
    num_videos: Annotated[int, Range(0, 1000)] = 4
    """Video strips in the report."""
    play_frames: Annotated[int, Range(1, 10**6)] = 120
    """Frames over which the speed of play is measured."""
    task_episodes: Annotated[int, Range(1, 10**6)] = 500
    """Episodes of each policy in the task protocol that does not search."""
    search_episodes: Annotated[int, Range(1, 10**6)] = 100
    """The same of a policy that searches, the first of them: a search is expensive."""
    oracle_episodes: Annotated[int, Range(1, 10**6)] = 4
    """The same of a search in the true simulator, which is more expensive."""
    task_seed: Annotated[int, Range(0, MAX_SEED)] = task.FIRST_SEED
    """Seed of the first episode, the next ones following; the default is the protocol's, on whose
    episodes nothing may be chosen."""
    task_max_steps: Annotated[int, Range(1, 10**4)] = task.MAX_STEPS
    """Most steps of a task episode; the default is the protocol's, fewer are only a trial."""
    return_episodes: Annotated[int, Range(1, 10**6)] = 100
    """Episodes of each policy in the return protocol, of a gymnasium environment; their seeds are
    those from --task-seed."""
    return_max_steps: Annotated[int, Range(1, 10**6)] = returns.MAX_STEPS
    """Most steps of such an episode, besides the environment's own limit."""
    return_envs: Annotated[int, Range(1, 1024)] = 20
    """Such environments at a time, which the world model sees as one batch."""
    goal_pairs: Annotated[int, Range(1, 10**6)] = 500
    """Pairs of start and goal for each seed."""
    pair_seeds: Annotated[tuple[int, ...], Range(0, MAX_SEED), NonEmpty()] = (0, 1, 2)
    """Seeds of the pair lists."""
    oracle_pairs: Annotated[int, Range(1, 10**6)] = 50
    """Pairs that the true simulator is planned in: this upper bound is expensive."""
    oracle_samples: Annotated[int, Range(2, 10**6)] = 300
    """Action sequences of an iteration in the true simulator."""
    oracle_iterations: Annotated[int, Range(1, 10**4)] = 8
    """Iterations of a plan in the true simulator."""
    planner: PlannerConfig = field(default_factory=PlannerConfig)
    """Search in the world for actions that reach a goal, where its latents and its actions are
    continuous."""
    receding_horizon: Annotated[int, Range(1, 10**4)] = goals.BUDGET // 2
    """Actions of a plan that are executed before replanning."""
    prior_receding_horizon: Annotated[int, Range(1, 10**4)] = 10
    """The same, where the goal policy is the planner's policy prior and a plan is cheaper."""
    task_planner: PlannerConfig = field(default_factory=lambda: TASK_PLANNER)
    """Search in the world for actions that lower the task's cost."""
    task_receding_horizon: Annotated[int, Range(1, 10**4)] = TASK_RECEDING_HORIZON
    """Actions of such a plan that are executed before replanning."""
    task_patience: Annotated[int, Range(1, 10**4)] = TASK_PATIENCE
    """Such plans in a row without progress until the search is widened."""
    num_workers: Annotated[int, Range(0, MAX_WORKERS)] = 0
    """Processes of simulators; 0 is one for each core."""
    compile: bool = False
    """Compile the world's steps, on a CPU: a minute or two the first time, and other last digits;
    for many pairs (docs/evaluate.md)."""
    device: DeviceOption = "auto"
    """Where to run: a CUDA GPU if there is one, else Apple's (mps), else the CPU."""
    kernels: Backend = "auto"
    """Run operations as Triton kernels, as PyTorch, or as what was measured faster on this GPU."""
    seed: Annotated[int, Range(0, MAX_SEED)] = 0
    restart: bool = False
    """Measure again what has been measured."""

    def check(self) -> None:
        super().check()
        last_seed = self.task_seed + self.num_seeds - 1
        if last_seed > MAX_SEED:
            raise ValueError(
                f"--task-seed {self.task_seed} with {self.num_seeds} episodes ends at seed "
                f"{last_seed}, and the largest is {MAX_SEED}; give {MAX_SEED - self.num_seeds + 1} "
                f"at most"
            )
        check_task_search(self.task_planner, self.task_receding_horizon)

    @property
    def num_seeds(self) -> int:
        """Most episodes of a policy in the task protocol."""
        return max(
            self.task_episodes, self.search_episodes, self.oracle_episodes, self.return_episodes
        )
