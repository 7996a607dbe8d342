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
from data.shards import Recordings
from data.splits import Split
from kernels import Kernels
from models.config import start_at_one
from models.controllers.discrete_goal_policy import GoalCodes
from models.controllers.goal_policy import GoalPolicy
from models.controllers.planner import Guide, Planner, PlannerConfig, ToGoal
from models.layers.sampling import Sampling
from models.world import World
from pipeline.cli import run as run_stage
from pipeline.device import describe_device
from pipeline.inference.aot_inductor import compiler_for
from pipeline.inference.load import load_controller, load_goal_policy, load_world
from pipeline.inference.recorded import Recorded, RecordedWorld
from pipeline.play.game import Game, headless_scene, write_actions
from pipeline.play.keyboard import tour
from pipeline.play.player import Player, Start, Starts
from pipeline.play.simulators import Simulator, open_simulator
from pipeline.play.towards import Towards
from pipeline.play.window import Window, check_display
from pipeline.video import write_film

Source = Literal[
    "recorded", "controller", "random", "file", "script", "planner", "amortised", "guided"
]
FILM_SIZE, WINDOW_SIZE = 256, 512
FPS = 0.01, 1000  # what a GIF and an mp4 can hold
SIZES = 16, 2048  # pixels of a picture's side; three beside each other are still an mp4
RANDOM_HOLD = 6  # steps that a random action is kept for: a new one each step goes nowhere


@dataclass(frozen=True)
class Config:
    run: Path = Path("runs/pusht")
    """Folder of the run to play in."""
    headless: bool = False
    """Write a film instead of opening a window."""
    beside_simulator: bool = False
    """Show the real simulator beside, under the same actions."""
    actions: Source | None = None
    """Who acts: the recorded episode (the default with --headless), the controller, chance,
    --actions-file, a script that walks and turns (Minecraft), or, towards the frame that was
    recorded --goal-steps later, a planner, the controller for goals (amortised), or a search that
    it guides (guided). In a window it is you, or the controller if that is asked for."""
    actions_file: Path | None = None
    """.npy file of actions in the environment's units, (N, A) or (N,), for --actions file."""
    steps: int = 100
    """Steps of a film, at most."""
    goal_steps: int = 25
    """Steps of the recording from the start to the goal."""
    planner: PlannerConfig = field(
        default_factory=lambda: PlannerConfig(samples=200, iterations=10, best=20)
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
    graph: bool = False
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
        world.compile_steps(compiler_for(world.device))
    if config.graph:
        world = cast(World, RecordedWorld(world))
    recordings = Recordings(config.run / "shards")
    world.actions.check_same(recordings.actions, "the world", str(recordings.folder))
    if config.sampling != Sampling():
        world.sample_with(config.sampling)
        torch.manual_seed(config.seed)
    starts = Starts(recordings, config.split, world.context, config.seed)
    player = Player(
        world,
        find_controller(config, world),
        find_simulator(recordings, needed=config.beside_simulator, wanted=not config.headless),
    )
    if config.headless:
        write(config, player, starts)
    else:
        play(config, player, starts)


def check(config: Config) -> None:
    """Refuse, before anything is loaded, what does not go together."""
    start_at_one(config, "--", "steps", "goal_steps")
    slowest, fastest = FPS
    if not slowest <= config.fps <= fastest:
        raise ValueError(f"--fps {config.fps} is no pace to see; give {slowest} to {fastest}")
    least, most = SIZES
    if config.size and not least <= config.size <= most:
        raise ValueError(f"--size {config.size} is no picture; give {least} to {most} pixels, or 0")
    if config.graph and not torch.cuda.is_available():
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


def find_simulator(recordings: Recordings, needed: bool, wanted: bool) -> Simulator | None:
    if not needed and not wanted:
        return None
    try:
        return open_simulator(recordings)
    except ValueError:
        if needed:
            raise
        return None


def first_start(config: Config, starts: Starts, steps: int = 0) -> Start:
    if config.episode is not None:
        return starts.at(config.episode, config.frame)
    return starts.draw(steps)


# -- a film --------------------------------------------------------------------------------------


def write(config: Config, player: Player, starts: Starts) -> None:
    """Play without a window, and write what was seen to RUN/play."""
    source = config.actions or "recorded"
    start = first_start(config, starts, config.steps)
    act, available = actor(config, source, player, start)
    steps = min(config.steps, available)
    if steps < config.steps:
        print(f"play: {steps} steps instead of {config.steps}: there are no more {source} actions")
    truth = None
    if config.beside_simulator:
        truth = "simulator"
    elif source == "recorded":
        truth = "recording"
    size = config.size or FILM_SIZE

    player.reset(start)
    goal = goal_of(config, start) if source in TOWARDS else None
    shots = [headless_scene(player, size, truth, goal)]
    began = time.perf_counter()
    for step in tqdm(range(steps), "play"):
        player.step(act(step))
        shots.append(headless_scene(player, size, truth, goal))
    speed = steps / (time.perf_counter() - began)

    folder = config.run / "play"
    write_film(folder, shots, config.fps)
    write_actions(folder, player.actions)
    beside = f"the {truth} beside what is imagined" if truth else "what is imagined"
    print(
        f"play: {len(shots)} frames of {beside}, {source} actions, from frame {start.frame} of "
        f"episode {starts.number(start)} ({config.split}), {speed:.0f} frames/s"
    )
    print(f"play: {folder / 'film.gif'}, {folder / 'film.mp4'}, {folder / 'frames'}")


def actor(
    config: Config, source: Source, player: Player, start: Start
) -> tuple[Callable[[int], np.ndarray], int]:
    """Give who acts, step -> action, and how many steps it can."""
    spec = player.world.actions
    if source == "controller":
        return lambda step: player.controllers_choice(), config.steps
    if source == "recorded":
        return lambda step: start.next_actions[step], len(start.next_frames)
    if source in TOWARDS:
        finder = TOWARDS[source](config, player.world)
        return Towards(player, finder, goal_of(config, start)), config.steps
    if source == "file":
        assert config.actions_file is not None
        given = read_actions(config.actions_file, spec)
        return lambda step: given[step], len(given)
    if source == "script":
        walk = tour(spec, config.steps)
        return lambda step: walk[step], config.steps
    count = -(-config.steps // RANDOM_HOLD)
    drawn = spec.sample(count, np.random.default_rng(config.seed))
    return lambda step: drawn[step // RANDOM_HOLD], config.steps


def goal_of(config: Config, start: Start) -> np.ndarray:
    """The recorded frame, (H, W, 3), `goal_steps` after the start, or the recording's last."""
    return start.next_frames[min(config.goal_steps, len(start.next_frames)) - 1]


def amortised(config: Config, world: World) -> GoalPolicy | GoalCodes:
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


def planner(config: Config, world: World, guide: Guide | None = None) -> Planner:
    record = partial(Recorded, device=world.device) if config.graph else None
    return Planner(config.planner, world, record, guide)


def guided(config: Config, world: World) -> Planner:
    guide = amortised(config, world)
    search = config.planner.guided(guide.leg, config.goal_steps)
    return planner(replace(config, planner=search), world, guide)


TOWARDS: dict[Source, Callable[[Config, World], ToGoal]] = {
    "planner": planner,
    "amortised": amortised,
    "guided": guided,
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
    inside = (actions >= low) & (actions <= high)  # NaN is outside, too
    if not inside.all():
        row = int(np.argwhere(~inside)[0][0])
        raise ValueError(f"{path} has action {actions[row]} at step {row}, outside {low} to {high}")
    return actions


# -- a window ------------------------------------------------------------------------------------


def play(config: Config, player: Player, starts: Starts) -> None:
    """Open the window and play until it is closed."""
    game = Game(
        player,
        starts,
        first_start(config, starts),
        config.run / "play",
        config.size or WINDOW_SIZE,
        config.fps,
        beside=config.beside_simulator,
        automatic=config.actions == "controller",
    )
    with Window(f"dreamstage {config.run}") as window:
        try:
            loop(game, window)
        finally:
            game.finish()


def loop(game: Game, window: Window) -> None:
    """Tick at the game's pace, listening in between."""
    due = time.perf_counter()
    while not game.over and not window.closed:
        window.show(game.tick())
        due = max(due + 1 / game.fps, time.perf_counter())
        while True:
            remaining = due - time.perf_counter()
            pressed = window.keys(1000 * remaining)
            place = window.take_mouse()
            if place is not None:
                game.point(*place)
            for down in window.take_buttons():
                game.button(down)
            for key in pressed:
                game.press(key)
            late = time.perf_counter() >= due
            if late or game.over or window.closed or (pressed and game.paused):
                break


if __name__ == "__main__":
    run_stage(main, Config, PRESETS)
