"""Play inside a world model: keys and mouse in, imagined frames out.

Reads   RUN/shards, RUN/tokenizer, RUN/dynamics, and RUN/controller if there is one.
Writes  RUN/play: a film (frames/, film.gif, film.mp4, actions.npy) with --headless, and
        recording-000 ... in the window, one for each time V is pressed.
Try     python play.py --run runs/demo
        python play.py --run runs/demo --headless --beside-simulator
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from tqdm import tqdm

import kernels
from data.actions import ActionSpec
from data.shards import EpisodeDataset
from data.splits import Split
from kernels import Kernels
from models.config import check_positive
from models.controllers.discrete_goal_policy import DiscreteGoalPolicy
from models.controllers.goal_policy import GoalPolicy
from models.controllers.planner import GoalPlanner, Planner, PlannerConfig, PolicyPrior
from models.layers.sampling import Sampling
from models.world import World
from pipeline.cli import run_cli as run_stage
from pipeline.device import describe_device
from pipeline.inference.aot_inductor import pick_compile_fn
from pipeline.inference.load import load_controller, load_goal_policy, load_world
from pipeline.inference.recorded import CudaGraphed, CudaGraphedWorld
from pipeline.play.game import Game, render_headless, write_actions
from pipeline.play.keyboard import script_actions
from pipeline.play.player import Player, Start, StartSampler
from pipeline.play.simulators import Simulator, open_simulator
from pipeline.play.towards import PlanExecutor
from pipeline.play.window import Window, check_display
from pipeline.video import write_video

ActionSource = Literal[
    "recorded", "controller", "random", "file", "script", "planner", "amortised", "guided"
]
VIDEO_SIZE, WINDOW_SIZE = 256, 512
FPS_RANGE = 0.01, 1000  # what a GIF and an mp4 can hold
SIZE_RANGE = 16, 2048  # pixels of a picture's side; three beside each other are still an mp4
RANDOM_ACTION_REPEAT = 6  # steps that a random action is kept for: a new one each step goes nowhere


@dataclass(frozen=True)
class Config:
    run: Path = Path("runs/pusht")
    """Folder of the run to play in."""
    headless: bool = False
    """Write a film instead of opening a window."""
    compare_simulator: bool = False
    """Show the real simulator beside, under the same actions."""
    actions: ActionSource | None = None
    """Who acts: the recorded episode (the default with --headless), the controller, chance,
    --actions-file, a script that walks and turns (Minecraft), or, towards the frame that was
    recorded --goal-steps later, a planner, the controller for goals (amortised), or a search that
    it guides (guided). In a window it is you, or the controller if that is asked for."""
    actions_file: Path | None = None
    """.npy file of actions in the environment's units, (N, A) or (N,), for --actions file."""
    steps: int = 100
    """Steps of a film, at most."""
    goal_offset: int = 25
    """Steps of the recording from the start to the goal."""
    make_planner: PlannerConfig = field(
        default_factory=lambda: PlannerConfig(num_samples=200, iterations=10, num_elites=20)
    )
    """Search of --actions planner and guided; a guided one has the controller's legs, as many as
    --goal-steps takes."""
    split: Split = "test"
    """Episodes to start from."""
    episode: int | None = None
    """Number of the episode, within the split; drawn if not given."""
    frame: int | None = None
    """Frame of the --episode to start from; the first possible one if not given."""
    fps: float = 10.0
    """Steps a second, in the window and in films; the recordings' own pace."""
    size: int = 0
    """Side of a picture in pixels; 0 is 512 in the window and 256 in a film."""
    sampling: Sampling = field(default_factory=Sampling)
    """How codes are drawn in a world of codes; by default the likeliest are taken."""
    compile: bool = False
    """Compile the world's steps: a minute or two the first time, then faster."""
    cuda_graph: bool = False
    """Replay each step, and each search, as one CUDA graph."""
    int8: bool = False
    """Hold the dynamics' weights in 8 bits, on a CPU: for large ones; less exact (docs/play.md)."""
    kernels: Kernels = "auto"
    """Run operations as Triton kernels, as PyTorch, or as what was measured faster on this GPU."""
    seed: int = 0
    """Draws starts, random actions and codes."""


def _minecraft(config: Config) -> Config:
    return replace(config, run=Path("runs/minecraft"), fps=20.0)


PRESETS = {
    "pusht": lambda c: c,
    "minecraft": _minecraft,
    "minecraft-150m": _minecraft,
    "high_res": lambda c: c,
    "tokens": lambda c: c,
    "goals": lambda c: c,
    "dinov2": lambda c: c,
    "latent": lambda c: c,
    "cpu": lambda c: c,
    "hour": lambda c: c,
    "debug": lambda c: replace(c, steps=min(c.steps, 12), size=128),
}


def main(config: Config) -> None:
    check(config)
    kernels.choose(config.kernels)
    if not config.headless:
        check_display()
    world = load_world(config.run, int8=config.int8)
    print(f"play: {describe_device(world.device)}, {kernels.describe(world.device)}")
    if config.int8:
        print(f"play: `python -m bench int8 --run {config.run}` says what 8 bits lose of PSNR here")
    if config.compile:
        world.compile_steps(pick_compile_fn(world.device))
    if config.cuda_graph:
        world = cast(World, CudaGraphedWorld(world))
    dataset = EpisodeDataset(config.run / "shards")
    world.actions.check_same(dataset.actions, "the world", str(dataset.folder))
    if config.sampling != Sampling():
        world.set_sampling(config.sampling)
        torch.manual_seed(config.seed)
    start_sampler = StartSampler(dataset, config.split, world.context, config.seed)
    player = Player(
        world,
        find_controller(config, world),
        find_simulator(dataset, required=config.compare_simulator, optional=not config.headless),
    )
    if config.headless:
        run_headless(config, player, start_sampler)
    else:
        run_window(config, player, start_sampler)


def check(config: Config) -> None:
    """Refuse, before anything is loaded, what does not go together."""
    check_positive(config, "--", "steps", "goal_steps")
    slowest, fastest = FPS_RANGE
    if not slowest <= config.fps <= fastest:
        raise ValueError(f"--fps {config.fps} is no pace to see; give {slowest} to {fastest}")
    smallest, largest = SIZE_RANGE
    if config.size and not smallest <= config.size <= largest:
        raise ValueError(
            f"--size {config.size} is no picture; give {smallest} to {largest} pixels, or 0"
        )
    if config.cuda_graph and not torch.cuda.is_available():
        raise ValueError("--graph replays CUDA graphs, and there is no CUDA GPU here; leave it out")
    if (config.actions == "file") != (config.actions_file is not None):
        raise ValueError("--actions file and --actions-file PATH belong together; give both")
    if config.frame is not None and config.episode is None:
        raise ValueError(f"--frame {config.frame} is of no episode; give --episode too")
    if not config.headless and config.actions not in (None, "controller"):
        raise ValueError(
            f"--actions {config.actions} has no effect in a window, where you act; "
            f"add --headless for a film"
        )


def find_controller(config: Config, world: Any) -> Any:
    """Load the controller: it must be there if it shall act, and may be for the window."""
    if config.actions == "controller":
        return load_controller(config.run, world)
    if config.headless or not (config.run / "controller" / "best.pt").exists():
        return None
    return load_controller(config.run, world)


def find_simulator(dataset: EpisodeDataset, required: bool, optional: bool) -> Simulator | None:
    if not required and not optional:
        return None
    try:
        return open_simulator(dataset)
    except ValueError:
        if required:
            raise
        return None


def first_start(config: Config, start_sampler: StartSampler, steps: int = 0) -> Start:
    if config.episode is not None:
        return start_sampler.at(config.episode, config.frame)
    return start_sampler.sample(steps)


# -- a film --------------------------------------------------------------------------------------


def run_headless(config: Config, player: Player, start_sampler: StartSampler) -> None:
    """Play without a window, and write what was seen to RUN/play."""
    source = config.actions or "recorded"
    start = first_start(config, start_sampler, config.steps)
    act, available = make_actor(config, source, player, start)
    steps = min(config.steps, available)
    if steps < config.steps:
        print(f"play: {steps} steps instead of {config.steps}: there are no more {source} actions")
    truth = None
    if config.compare_simulator:
        truth = "simulator"
    elif source == "recorded":
        truth = "recording"
    size = config.size or VIDEO_SIZE

    player.reset(start)
    goal = goal_frame(config, start) if source in GOAL_PLANNERS else None
    frames = [render_headless(player, size, truth, goal)]
    start_time = time.perf_counter()
    for step in tqdm(range(steps), "play"):
        player.step(act(step))
        frames.append(render_headless(player, size, truth, goal))
    frames_per_second = steps / (time.perf_counter() - start_time)

    folder = config.run / "play"
    write_video(folder, frames, config.fps)
    write_actions(folder, player.actions)
    summary = f"the {truth} beside what is imagined" if truth else "what is imagined"
    print(
        f"play: {len(frames)} frames of {summary}, {source} actions, from frame {start.frame} of "
        f"episode {start_sampler.episode_number(start)} ({config.split}), {frames_per_second:.0f} frames/s"
    )
    print(f"play: {folder / 'film.gif'}, {folder / 'film.mp4'}, {folder / 'frames'}")


def make_actor(
    config: Config, source: ActionSource, player: Player, start: Start
) -> tuple[Callable[[int], np.ndarray], int]:
    """Give who acts, step -> action, and how many steps it can."""
    spec = player.world.actions
    if source == "controller":
        return lambda step: player.controller_action(), config.steps
    if source == "recorded":
        return lambda step: start.next_actions[step], len(start.next_frames)
    if source in GOAL_PLANNERS:
        goal_planner = GOAL_PLANNERS[source](config, player.world)
        return PlanExecutor(player, goal_planner, goal_frame(config, start)), config.steps
    if source == "file":
        assert config.actions_file is not None
        loaded = read_actions(config.actions_file, spec)
        return lambda step: loaded[step], len(loaded)
    if source == "script":
        scripted = script_actions(spec, config.steps)
        return lambda step: scripted[step], config.steps
    num_actions = -(-config.steps // RANDOM_ACTION_REPEAT)
    sampled = spec.sample(num_actions, np.random.default_rng(config.seed))
    return lambda step: sampled[step // RANDOM_ACTION_REPEAT], config.steps


def goal_frame(config: Config, start: Start) -> np.ndarray:
    """The recorded frame, (H, W, 3), `goal_steps` after the start, or the recording's last."""
    return start.next_frames[min(config.goal_offset, len(start.next_frames)) - 1]


def goal_policy(config: Config, world: World) -> GoalPolicy | DiscreteGoalPolicy:
    policy = load_goal_policy(config.run, world)
    if policy is None:
        folder = config.run / "controller" / "goals"
        raise ValueError(f"{folder} holds no controller for goals; {_advice(config, world)}")
    return policy


def _advice(config: Config, world: World) -> str:
    """Which command makes a controller for goals of this world, if any does."""
    train, actions = f"train_controller.py --run {config.run}", world.actions
    if actions.factors:
        return f"{train} --preset minecraft makes it"
    if actions.kind == "discrete":
        return "its actions are no choices that one could learn to make; give other --actions"
    if world.latents.kind == "discrete":
        return (
            "none can learn in a world of codes, but in one of vectors, which --preset goals "
            "makes; --actions planner needs none"
        )
    return f"{train} --methods cloning goals makes it, and --actions planner needs none"


def make_planner(config: Config, world: World, policy_prior: PolicyPrior | None = None) -> Planner:
    capture = partial(CudaGraphed, device=world.device) if config.cuda_graph else None
    return Planner(config.planner, world, capture, policy_prior)


def make_planner_with_prior(config: Config, world: World) -> Planner:
    policy_prior = goal_policy(config, world)
    planner_config = config.planner.with_action_block(policy_prior.action_block, config.goal_offset)
    return make_planner(replace(config, planner=planner_config), world, policy_prior)


GOAL_PLANNERS: dict[ActionSource, Callable[[Config, World], GoalPlanner]] = {
    "planner": make_planner,
    "amortised": goal_policy,
    "guided": make_planner_with_prior,
}


def read_actions(path: Path, spec: ActionSpec) -> np.ndarray:
    """Read (N, A) or (N,) actions and check that they are of this action space."""
    try:
        actions = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as problem:
        raise ValueError(f"{path} is no .npy file of numbers ({problem})") from None
    if not isinstance(actions, np.ndarray):
        raise ValueError(f"{path} holds several arrays; save the actions alone, with numpy.save")
    if actions.dtype.kind not in "iuf":
        raise ValueError(f"{path} holds {actions.dtype}, but actions are real numbers")
    if actions.ndim != 1 + len(spec.shape) or actions.shape[1:] != spec.shape or not len(actions):
        names = ", ".join(spec.names)
        shape = ", ".join(["N", *map(str, spec.shape)])
        raise ValueError(f"{path} holds {actions.shape}, but actions ({names}) are ({shape})")
    if spec.kind == "discrete":
        if not np.issubdtype(actions.dtype, np.integer):
            raise ValueError(f"{path} holds {actions.dtype}, but actions are whole numbers here")
        low, high = 0, spec.size - 1
    else:
        low, high = np.array(spec.low), np.array(spec.high)
    valid = (actions >= low) & (actions <= high)  # NaN is outside, too
    if not valid.all():
        row = int(np.argwhere(~valid)[0][0])
        raise ValueError(f"{path} has action {actions[row]} at step {row}, outside {low} to {high}")
    return actions


# -- a window ------------------------------------------------------------------------------------


def run_window(config: Config, player: Player, start_sampler: StartSampler) -> None:
    """Open the window and play until it is closed."""
    game = Game(
        player,
        start_sampler,
        first_start(config, start_sampler),
        config.run / "play",
        config.size or WINDOW_SIZE,
        config.fps,
        show_simulator=config.compare_simulator,
        use_controller=config.actions == "controller",
    )
    with Window(f"dreamstage {config.run}") as window:
        try:
            loop(game, window)
        finally:
            game.close()


def loop(game: Game, window: Window) -> None:
    """Tick at the game's pace, listening in between."""
    next_tick = time.perf_counter()
    while not game.quit_requested and not window.closed:
        window.show(game.tick())
        next_tick = max(next_tick + 1 / game.fps, time.perf_counter())
        while True:
            remaining = next_tick - time.perf_counter()
            pressed = window.poll_keys(1000 * remaining)
            position = window.poll_mouse()
            if position is not None:
                game.move_pointer(*position)
            for down in window.poll_buttons():
                game.mouse_button(down)
            for key in pressed:
                game.press(key)
            is_late = time.perf_counter() >= next_tick
            if is_late or game.quit_requested or window.closed or (pressed and game.paused):
                break


if __name__ == "__main__":
    run_stage(main, Config, PRESETS)
