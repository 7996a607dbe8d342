"""What play shows, who acts in it, and towards what."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, get_args

from data.ranges import MAX_SEED, CheckedConfig, Range
from data.shards.shard_header import Split
from kernels import Backend
from models.layers.sampling import Sampling
from models.planning.best_of_n import BestOfNConfig
from models.planning.code_planner import CodePlannerConfig
from models.planning.planner import PlannerConfig
from models.planning.task_search import (
    TASK_PATIENCE,
    TASK_PLANNER,
    TASK_RECEDING_HORIZON,
    check_task_search,
)
from pipeline.device import DeviceOption, pick_device
from pipeline.play.browser.server_config import ServerConfig
from pipeline.play.goal_planners import GoalSource
from pipeline.play.goals import DATASET, TASK

ActionSource = Literal[
    "dataset", "actor_critic", "random", "file", "script", "planner", "goal_policy", "policy_prior",
    "best_of_n",
]  # fmt: skip
FPS_RANGE = Range(0.01, 1000)  # what a GIF and an mp4 can hold
SIZE_RANGE = Range(16, 2048, or_zero=True)  # three panels next to each other still fit an mp4


@dataclass(frozen=True)
class Config(CheckedConfig):
    run: Path = Path("runs/pusht")
    """Folder of the run to play in."""
    out: Path | None = None
    """Folder of videos and recordings, if not RUN/play."""
    headless: bool = False
    """Write a video instead of opening a window."""
    browser: bool = False
    """Serve a page to play in, for many people at once, instead of opening a window."""
    server: ServerConfig = field(default_factory=ServerConfig)
    """Where --browser serves, and to whom."""
    compare_simulator: bool = False
    """Show the real simulator next to the world model, under the same actions."""
    observe_simulator: bool = False
    """Move the world to the simulator's frames, before each plan towards --goal, or after each step
    of --actions actor_critic: the actions are carried out in the simulator, and the world shows
    what it predicts in between."""
    actions: ActionSource | None = None
    """Who acts: the dataset (the default with --headless), the actor-critic, uniformly random
    actions, --actions-file, a script that walks and turns (Minecraft), or, towards --goal, a
    planner, the goal policy, a planner with the goal policy as its prior (policy_prior), or the
    best of what the task's imitator would do (best_of_n). In a window you act, or the actor-critic
    or what acts towards a goal if it is asked for."""
    goal: tuple[str, ...] = ()
    """What is acted towards: `dataset`, its frame --goal-offset steps later (the default with
    --headless); `task`, as train_controller.py --methods task_cost has learned it (the default in a
    window); or image files, or folders of them, of which reaching any image will do."""
    prompt: tuple[str, ...] = ()
    """Start from these image files instead of an episode: each is cut to the world's aspect ratio
    around its center, and resized."""
    button_names: tuple[str, ...] = ()
    """Names of latent actions from the first on, which the run keeps."""
    true_actions: bool = False
    """In a world of latent actions act by the data's own instead, translated by a map that was
    learned from --label-budget labeled steps."""
    label_budget: Annotated[int, Range(2, 10**6)] = 200
    """Labeled steps of the map to true actions, for --true-actions and for the simulator."""
    actions_file: Path | None = None
    """.npy file of actions in the environment's units, (N, A) or (N,), for --actions file."""
    steps: Annotated[int, Range(1, 10**5)] = 100
    """Steps of a video, at most."""
    goal_offset: Annotated[int, Range(1, 10**5)] = 25
    """Steps of the dataset from the start to the goal."""
    planner: PlannerConfig = field(
        default_factory=lambda: PlannerConfig(num_samples=200, iterations=10, num_elites=20)
    )
    """Search of --actions planner and policy_prior for whole plans to the dataset's frame; with a
    prior it has the prior's action blocks, as many as --goal-offset takes."""
    code_planner: CodePlannerConfig = field(default_factory=CodePlannerConfig)
    """Search of --actions planner where actions are few codes, such as latent ones."""
    task_planner: PlannerConfig = field(default_factory=lambda: TASK_PLANNER)
    """The same search towards the task, or towards images, which are reached at no known step."""
    task_receding_horizon: Annotated[int, Range(1, 10**4)] = TASK_RECEDING_HORIZON
    """Actions of a plan towards the task, or images, that are executed before replanning."""
    task_patience: Annotated[int, Range(1, 10**4)] = TASK_PATIENCE
    """Plans in a row without progress towards the task, or images, until the search widens."""
    best_of_n: BestOfNConfig = field(default_factory=BestOfNConfig)
    """Choice among chunks of --actions best_of_n."""
    split: Split = "test"
    """Episodes to start from."""
    episode: Annotated[int | None, Range(0, 10**9)] = None
    """Number of the episode, within the split; drawn if not given."""
    frame: Annotated[int | None, Range(0, 10**9)] = None
    """Frame of the --episode to start from; the first possible one if not given."""
    fps: Annotated[float, FPS_RANGE] = 10.0
    """Steps a second, in the window and in videos."""
    size: Annotated[int, SIZE_RANGE] = 0
    """Height of a panel in pixels; 0 is 512 in the window and 256 in a video."""
    sampling: Sampling = field(default_factory=Sampling)
    """How codes are sampled in a world of discrete latents; by default the likeliest are taken."""
    compile: bool = False
    """Compile the world's steps: a slower start, then faster."""
    cuda_graph: bool = False
    """Replay each step, and each search, as one CUDA graph."""
    int8: bool = False
    """Hold the dynamics' weights in 8 bits, on a CPU: for large ones; less exact
    (docs/reference/play.md)."""
    device: DeviceOption = "auto"
    """Where to run: a CUDA GPU if there is one, else Apple's (mps), else the CPU."""
    kernels: Backend = "auto"
    """Run operations as Triton kernels, as PyTorch, or as what was measured faster on this GPU."""
    seed: Annotated[int, Range(0, MAX_SEED)] = 0
    """Of starts, random actions and codes."""


def check(config: Config) -> None:
    """Refuse, before anything is loaded, options that do not go together."""
    if config.browser and config.headless:
        raise ValueError("--browser and --headless are two ways to play; give one of them")
    if config.browser and config.cuda_graph:
        raise ValueError(
            "--cuda-graph is for one player, and --browser is for many; leave one of them out"
        )
    if config.cuda_graph and pick_device().type != "cuda":
        raise ValueError(
            f"--cuda-graph needs a CUDA GPU, and the device is {pick_device().type}; leave it out"
        )
    if config.int8 and pick_device().type != "cpu":
        raise ValueError(
            f"--int8 is for CPUs, and the device is {pick_device().type}; add --device cpu"
        )
    if (config.actions == "file") != (config.actions_file is not None):
        raise ValueError("--actions file and --actions-file PATH belong together; give both")
    if config.frame is not None and config.episode is None:
        raise ValueError(f"--frame {config.frame} needs an episode; give --episode too")
    if not all(name.strip() for name in config.goal):
        raise ValueError(
            f"--goal has an empty name; give {DATASET}, {TASK} or image files, or leave it out"
        )
    towards_goal = config.actions in get_args(GoalSource)
    observes = config.observe_simulator and config.actions != "actor_critic"
    if config.headless and not towards_goal and (config.goal or observes):
        flag = f"--goal {' '.join(config.goal)}" if config.goal else "--observe-simulator"
        raise ValueError(
            f"{flag} is for what acts towards a goal, and --actions is "
            f"{config.actions or DATASET}; give --actions {', '.join(get_args(GoalSource)[:-1])} "
            f"or {get_args(GoalSource)[-1]}"
        )
    if config.prompt:
        _check_prompt(config)
    check_task_search(config.task_planner, config.task_receding_horizon)
    if len(config.goal) > 1 and (named := {DATASET, TASK} & set(config.goal)):
        raise ValueError(f"--goal {min(named)} goes with no other goal; give it alone")
    if not (config.headless or towards_goal) and config.actions not in (None, "actor_critic"):
        raise ValueError(
            f"--actions {config.actions} has no effect in a window, where you act; "
            f"add --headless for a video"
        )


def _check_prompt(config: Config) -> None:
    """Refuse what needs an episode, where an image is all there is."""
    given = {
        "--episode": config.episode is not None,
        "--compare-simulator": config.compare_simulator,
        "--observe-simulator": config.observe_simulator,
        "--goal dataset": DATASET in config.goal,
        "--actions dataset": config.actions == "dataset",
    }
    for flag, is_given in given.items():
        if is_given:
            raise ValueError(
                f"--prompt starts from an image, and {flag} needs an episode; drop one"
            )
    if config.headless and config.actions is None:
        raise ValueError(
            "--prompt has no recorded actions; give --actions random, or --actions file with "
            "--actions-file"
        )
    if config.headless and config.actions in get_args(GoalSource) and not config.goal:
        raise ValueError("--prompt has no later frame to reach; give --goal an image, or task")
