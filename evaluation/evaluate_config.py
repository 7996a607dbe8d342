"""What an evaluation measures, on what, and how often."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final, Literal, get_args

from data.pusht.simulator import WINDOW_SIZE
from data.pusht.task_goal import Goal, check_in_world
from data.ranges import MAX_SEED, MAX_STEPS, MAX_WORKERS, CheckedConfig, NonEmpty, Range
from evaluation.measures.open_loop import HORIZONS
from evaluation.protocols import goals, returns, task
from evaluation.readers.label_budget import BUDGETS
from evaluation.report.metrics_schema import TASK_POLICIES
from kernels import Backend
from models.planning.best_of_n import BestOfNConfig
from models.planning.code_planner import CodePlannerConfig
from models.planning.planner import PlannerConfig
from models.planning.task_search import (
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
    "rewards",
    "events",
    "counterfactuals",
    "controllability",
    "latent_actions",
    "imitation",
    "play",
    "task",
    "goal",
    "returns",
]
ProtocolName = Literal[
    "first_hit",
    "strict",
    "chunk_end",
    "offset50",
    "offset50_strict",
    "offset100",
    "offset100_strict",
    "task",
    "given_goal",
    "returns",
]
GIVEN_GOAL: Final = "given_goal"
"""The protocol of --goal."""


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
    goal: tuple[str, ...] = ()
    """Measure nothing but how near planners come to this goal in the simulator: image files, or
    folders of them, of which reaching any image will do; or `task`, by its learned cost."""
    goal_pose: Annotated[Goal | None, Range(-360, WINDOW_SIZE)] = None
    """X Y DEGREES of the block in the images of --goal, if its error is to be measured, too."""
    num_clips: Annotated[int, Range(1, 10**6)] = 256
    """Held-out clips for the tokenizer, the open loop and controllability."""
    horizons: Annotated[tuple[int, ...], Range(1, 10**4), NonEmpty()] = HORIZONS
    """Steps ahead at which the model rollout is compared with the true frames."""
    estimator_steps: Annotated[int, Range(1, MAX_STEPS)] = 400
    """Training steps of the state estimator, and of the networks that bound a latent action's
    probe."""
    idm_steps: Annotated[int, Range(1, MAX_STEPS)] = 3000
    """Training steps of the inverse dynamics model, which predicts actions from pairs of frames."""
    label_budgets: Annotated[tuple[int, ...], Range(2, 10**6), NonEmpty()] = BUDGETS
    """Labeled steps that maps between latent and true actions are learned from, one map each."""
    imitation_frames: Annotated[int, Range(1, 10**7)] = 4000
    """Held-out frames on which controllers are compared with the actions of the dataset."""
    num_videos: Annotated[int, Range(0, 1000)] = 4
    """Video strips in the report."""
    play_frames: Annotated[int, Range(1, 10**6)] = 120
    """Frames over which the speed of play is measured."""
    task_episodes: Annotated[int, Range(1, 10**6)] = 500
    """Episodes of each policy in the task protocol."""
    search_episodes: Annotated[int, Range(0, 10**6)] = 100
    """Most of them for a policy that searches, the first ones: a search is expensive; 0 leaves
    these policies out.  Also the episodes towards --goal."""
    oracle_episodes: Annotated[int, Range(0, 10**6)] = 4
    """Most of them for a search in the true simulator, which is more expensive; 0 leaves it out."""
    task_without: tuple[str, ...] = ()
    """Policies that the task protocol leaves out, unless --policies names them."""
    task_seed: Annotated[int, Range(0, MAX_SEED)] = task.FIRST_SEED
    """Seed of the first episode, the next ones following; the default is the protocol's, on whose
    episodes nothing may be chosen."""
    task_max_steps: Annotated[int, Range(1, 10**4)] = task.MAX_STEPS
    """Most steps of a task episode; the default is the protocol's, fewer are only a trial."""
    task_goal: Annotated[Goal | None, Range(-360, WINDOW_SIZE)] = None
    """X Y DEGREES: another goal of the task protocol on Push-T than that of the recordings, drawn
    there instead; the task's cost and the canonical policy are given its pose."""
    random_goal: bool = False
    """Draw the goal of each episode of the task protocol by its seed, anywhere."""
    return_episodes: Annotated[int, Range(1, 10**6)] = 100
    """Episodes of each policy in the return protocol, of a gymnasium environment; their seeds are
    those from --task-seed."""
    return_max_steps: Annotated[int, Range(1, 10**6)] = returns.MAX_STEPS
    """Most steps of such an episode, besides the environment's own limit."""
    return_envs: Annotated[int, Range(1, 1024)] = 20
    """Such environments at a time, which the world model sees as one batch."""
    goal_offsets: Annotated[tuple[Literal[25, 50, 100], ...], NonEmpty()] = (25, 50)
    """Measure goals so many steps away; those that --protocol names are measured all the same."""
    goal_pairs: Annotated[int, Range(1, 10**6)] = 500
    """Pairs of start and goal for each seed."""
    pair_seeds: Annotated[tuple[int, ...], Range(0, MAX_SEED), NonEmpty()] = (0, 1, 2)
    """Seeds of the pair lists."""
    oracle_pairs: Annotated[int, Range(1, 10**6)] = 50
    """Pairs that are planned in the true simulator, which is expensive."""
    oracle_samples: Annotated[int, Range(2, 10**6)] = 300
    """Action sequences of an iteration in the true simulator."""
    oracle_iterations: Annotated[int, Range(1, 10**4)] = 8
    """Iterations of a plan in the true simulator."""
    planner: PlannerConfig = field(default_factory=PlannerConfig)
    """Search in the world for actions that reach a goal, where its latents and its actions are
    continuous."""
    code_planner: CodePlannerConfig = field(default_factory=CodePlannerConfig)
    """The same where actions are few codes, such as latent ones."""
    keypoints: str = ""
    """Folder of a run whose tokenizer is keypoints (--preset keypoints) of the same videos: the
    search over codes then compares where keypoints are, else blurred images."""
    planner_labels: Annotated[int, Range(2, 10**6)] = 200
    """Labeled steps of the map by which latent actions are carried out in the simulator."""
    receding_horizon: Annotated[int, Range(1, 10**4)] = goals.CHUNK
    """Actions of a plan that are executed before replanning."""
    prior_receding_horizon: Annotated[int, Range(1, 10**4)] = 10
    """The same, where the goal policy is the planner's policy prior and a plan is cheaper."""
    task_planner: PlannerConfig = field(default_factory=lambda: TASK_PLANNER)
    """Search in the world for actions that lower the task's cost."""
    task_receding_horizon: Annotated[int, Range(1, 10**4)] = TASK_RECEDING_HORIZON
    """Actions of such a plan that are executed before replanning."""
    task_patience: Annotated[int, Range(1, 10**4)] = TASK_PATIENCE
    """Such plans in a row without progress until the search is widened."""
    best_of_n: BestOfNConfig = field(default_factory=BestOfNConfig)
    """Choice among what the task's imitator would do, by the task's cost in the world."""
    num_workers: Annotated[int, Range(0, MAX_WORKERS)] = 0
    """Processes of simulators; 0 is one for each core."""
    num_processes: Annotated[int, Range(1, MAX_WORKERS)] = 1
    """Processes that measure parts side by side on a CPU, each with its share of the cores."""
    compile: bool = False
    """Compile the world's steps, on a CPU: a minute or two the first time, and other last digits;
    for many pairs (docs/reference/evaluate.md)."""
    device: DeviceOption = "auto"
    """Where to run: a CUDA GPU if there is one, else Apple's (mps), else the CPU."""
    kernels: Backend = "auto"
    """Run operations as Triton kernels, as PyTorch, or as what was measured faster on this GPU."""
    live: Annotated[int, Range(0, 65535)] = 0
    """Port of a page that follows it at 127.0.0.1; 0 is no page."""
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
        check_in_world(self.task_goal, "--task-goal")
        check_in_world(self.goal_pose, "--goal-pose")
        self._check_goal()
        for name in self.task_without:
            if name not in TASK_POLICIES:
                raise ValueError(
                    f"--task-without {name}: no policy of the task protocol; choose from "
                    f"{', '.join(sorted(TASK_POLICIES))}"
                )
        check_task_search(self.task_planner, self.task_receding_horizon)

    def _check_goal(self) -> None:
        if not all(name.strip() for name in self.goal):
            raise ValueError("--goal has an empty name; give task or image files, or leave it out")
        if "task" in self.goal and len(self.goal) > 1:
            raise ValueError("--goal task goes with no other goal; give it alone")
        if "dataset" in self.goal:
            raise ValueError(
                "--goal dataset: goals of the dataset have protocols of their own; give --protocol "
                "first_hit or offset50 instead"
            )
        if self.goal_pose and self.goal in ((), ("task",)):
            raise ValueError("--goal-pose is that of the images of --goal; give image files, too")
        if self.goal and not self.search_episodes:
            raise ValueError("--goal is measured over --search-episodes, which is 0; give some")
        if GIVEN_GOAL in self.protocol and not self.goal:
            raise ValueError(f"--protocol {GIVEN_GOAL} needs --goal: image files, or task")
        if self.task_goal and self.protocols and "task" not in self.protocols:
            raise ValueError(
                "--task-goal is of the task protocol; leave it out, or add --protocol task"
            )
        if self.random_goal and self.protocols and "task" not in self.protocols:
            raise ValueError(
                "--random-goal is of the task protocol; leave it out, or add --protocol task"
            )
        if self.random_goal and self.task_goal:
            raise ValueError("--task-goal and --random-goal exclude each other; give one")

    @property
    def protocols(self) -> tuple[ProtocolName, ...]:
        """What is selected: with a goal that protocol alone, if none is named."""
        return self.protocol or ((GIVEN_GOAL,) if self.goal else ())

    @property
    def num_seeds(self) -> int:
        """Most episodes of a policy in the task protocol."""
        given_goal = self.search_episodes if self.goal else 0
        return max(self.task_episodes, self.return_episodes, given_goal)

    @property
    def num_searches(self) -> int:
        """Episodes of a policy that searches in the task protocol."""
        return min(self.search_episodes, self.task_episodes)

    @property
    def num_oracles(self) -> int:
        """Episodes of a search in the true simulator."""
        return min(self.oracle_episodes, self.task_episodes)

    @property
    def without_episodes(self) -> dict[str, str]:
        """The policies that the task protocol leaves out, each with the reason."""
        reason = "--{}-episodes is 0, as in a demo; give some"
        left_out = {"planner": "search", "policy_prior": "search"} if not self.num_searches else {}
        left_out |= {} if self.num_oracles else {"oracle_cem": "oracle"}
        return {policy: reason.format(flag) for policy, flag in left_out.items()}
