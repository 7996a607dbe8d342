"""Play inside a world model: keys and mouse in, frames of the model rollout out.

Reads   RUN/shards, RUN/tokenizer, RUN/dynamics, and RUN/controller if there is one.
Writes  RUN/play, or --out: a video (frames/, rollout.gif, rollout.mp4, actions.npy) with
        --headless, and recording-000 ... in the window, one for each time V is pressed.
        With --browser a page, and nothing but what a visitor downloads.
Try     python play.py --run runs/demo
        python play.py --run runs/demo --headless --compare-simulator
        python play.py --run runs/goals --headless --goal task --actions policy_prior
"""

from __future__ import annotations

if __name__ in ("__main__", "__mp_main__"):  # a script, or a worker process of one
    from pipeline.startup import start

    start(__name__)

import time
from collections.abc import Callable
from pathlib import Path
from socket import socket
from typing import cast, get_args

import numpy as np
import torch

import kernels
from data.io.files import writable_folder
from data.io.messages import command
from data.shards.episode_dataset import EpisodeDataset
from models.action_map import ActionMap
from models.controllers.controller import Controller
from models.layers.sampling import Sampling
from models.world import World
from pipeline.cli import run_cli
from pipeline.cuda_graph import CudaGraphedWorld
from pipeline.device import describe_device, set_device
from pipeline.inference.action_maps import load_action_map
from pipeline.inference.load_controllers import load_controller
from pipeline.inference.load_world import load_world
from pipeline.play.action_file import read_actions, write_actions
from pipeline.play.browser import serve
from pipeline.play.buttons import Buttons, find_buttons
from pipeline.play.game import PLACES, Game
from pipeline.play.goal_actor import GoalActor
from pipeline.play.goal_planners import (
    GoalSource,
)
from pipeline.play.goals import DATASET, TASK, Goal, find_goal
from pipeline.play.headless import Actor, Scene, Truth, play_headless
from pipeline.play.keyboard import script_actions
from pipeline.play.play_config import ActionSource, Config, check
from pipeline.play.player import Player, Start, Starts, StartSampler
from pipeline.play.prompt import PromptStarts
from pipeline.play.recording import Recording
from pipeline.play.shared_planning import SharedPlanning, make_goal_executor
from pipeline.play.simulators import SOLVED, MappedSimulator, Simulator, find_simulator
from pipeline.play.window import Window, check_display
from pipeline.video import write_video

VIDEO_SIZE, WINDOW_SIZE = 256, 512
MAX_VIDEO_BYTES = 4 * 2**30
RANDOM_ACTION_REPEAT = 6  # steps that a random action is held: a new one each step goes nowhere


def main(config: Config) -> None:
    set_device(config.device, config.kernels)
    check(config)
    listening = None
    if config.browser:
        serve.check_installed()
        listening = serve.open_socket(config.server)
    elif not config.headless:
        check_display()
    world = load_world(config.run, int8=config.int8)
    print(f"play: {describe_device(world.device)}, {kernels.describe(world.device)}")
    if config.int8:
        measure = command("-m bench", "int8", "--run", config.run)
        print(f"play: `{measure}` measures the PSNR that 8 bits cost")
    if config.compile:
        # the compiler takes a second to import
        from pipeline.inference.aot_inductor import pick_compile_fn

        world.compile_steps(pick_compile_fn(world.device))
    if config.cuda_graph:
        world = cast(World, CudaGraphedWorld(world))
    dataset = EpisodeDataset(config.run / "shards")
    world.data_actions.check_same(dataset.actions, "the world", str(dataset.folder))
    if config.sampling != Sampling():
        world.set_sampling(config.sampling)
        torch.manual_seed(config.seed)
    action_map, buttons = find_action_map(config, world), None
    starts = find_starts(config, world, dataset, action_map)
    controller = find_controller(config, world)
    if world.infers_actions and not config.true_actions:
        buttons = find_buttons(config.run, world, dataset, config.button_names)

    def make_player() -> Player:
        return Player(
            world,
            controller,
            open_simulator_of(config, world, dataset, action_map),
            keep_simulator_frames=config.observe_simulator,
            observes_each_step=config.observe_simulator and config.actions == "actor_critic",
            action_map=action_map,
        )

    if config.headless:
        run_headless(config, make_player(), dataset, starts, buttons)
        return
    planning = SharedPlanning(config, world, dataset)
    if listening is None:
        run_window(config, make_player(), starts, buttons, planning)
    else:
        run_browser(config, make_player, starts, buttons, planning, listening)


def find_starts(
    config: Config, world: World, dataset: EpisodeDataset, action_map: ActionMap | None
) -> Starts:
    """Start from images, or from episodes of the dataset."""
    if config.prompt:
        return PromptStarts(config.prompt, world)
    infers = world if world.infers_actions and not config.true_actions else None
    if config.actions == "dataset" and config.true_actions and not dataset.has("actions"):
        raise ValueError(
            f"{dataset.folder} has no actions, so --actions dataset has none to take; choose "
            f"others, or leave --true-actions out"
        )
    taken = None if action_map is None else action_map.true
    return StartSampler(dataset, config.split, world.context, config.seed, infers, taken)


def find_action_map(config: Config, world: World) -> ActionMap | None:
    """Load the map by which the data's own actions are taken, where they are asked for."""
    if not world.infers_actions and (config.true_actions or config.button_names):
        flag = "--true-actions" if config.true_actions else "--button-names"
        raise ValueError(f"{flag} is for worlds of latent actions; {config.run}'s are the data's")
    return load_action_map(config.run, world, config.label_budget) if config.true_actions else None


def open_simulator_of(
    config: Config, world: World, dataset: EpisodeDataset, action_map: ActionMap | None
) -> Simulator | None:
    """Open the dataset's simulator where it can be shown; latent actions reach it through a map."""
    flags = simulator_flags(config)
    places = action_map is not None and action_map.true.pointer
    if places and config.prompt:
        raise ValueError(
            "--true-actions are places here, and nothing tells where the agent of --prompt is; "
            "leave --true-actions out, and play by the buttons"
        )
    if config.prompt or (world.infers_actions and not flags and not config.true_actions):
        return None
    optional = not config.headless or places  # the agent's place is known there
    simulator = find_simulator(dataset, flags, optional)
    if places and simulator is None:
        raise ValueError(
            f"--true-actions are places, and no simulator of {dataset.folder} tells where the "
            f"agent is; leave it out, and play by the buttons"
        )
    if simulator is None or not world.infers_actions or config.true_actions:
        return simulator
    return MappedSimulator(simulator, load_action_map(config.run, world, config.label_budget))


def find_controller(config: Config, world: World) -> Controller | None:
    """Load the controller: required where it acts, optional in the window."""
    if config.actions == "actor_critic":
        return load_controller(config.run, world)
    if config.headless or not (config.run / "controller" / "best.pt").exists():
        return None
    return load_controller(config.run, world)


def simulator_flags(config: Config) -> str:
    """The flags that show the simulator; none where it is not shown."""
    given = {
        "--compare-simulator": config.compare_simulator,
        "--observe-simulator": config.observe_simulator,
    }
    return " and ".join(flag for flag, is_given in given.items() if is_given)


def shows_simulator(config: Config) -> bool:
    return bool(simulator_flags(config))


def videos_folder(config: Config) -> Path:
    return config.out or config.run / "play"


def first_start(config: Config, starts: Starts, steps: int = 0) -> Start:
    if config.episode is not None:
        return cast(StartSampler, starts).at(config.episode, config.frame)
    start = starts.sample(steps)
    if TASK in config.goal and isinstance(starts, StartSampler):
        # from its beginning: later frames may be near the goal
        return starts.at(starts.episode_number(start))
    return start


# -- a video -------------------------------------------------------------------------------------


def run_headless(
    config: Config,
    player: Player,
    dataset: EpisodeDataset,
    starts: Starts,
    buttons: Buttons | None,
) -> None:
    """Play without a window, and write the video to --out, or RUN/play."""
    source = config.actions or "dataset"
    start = first_start(config, starts, config.steps)
    goal = None
    if source in get_args(GoalSource):
        names = config.goal or (DATASET,)
        goal = find_goal(names, config.run, player.world, dataset, start, config.goal_offset)
    act, available = make_actor(config, source, player, start, goal)
    steps = min(config.steps, available)
    if steps < config.steps:
        print(f"play: {steps} steps instead of {config.steps}: there are no more {source} actions")
    truth: Truth | None = "dataset" if source == "dataset" else None
    if shows_simulator(config):
        truth = "simulator"
    size, image = config.size or VIDEO_SIZE, None if goal is None else goal.image
    has_status = config.observe_simulator or (goal is not None and not goal.has_time)
    scene = Scene(size, truth, image, buttons, has_status)
    check_video_size(steps, scene.num_bytes(player.world.image_size))
    folder = writable_folder(videos_folder(config), "--out")
    solved = SOLVED if goal is not None and goal.is_task else None
    played = play_headless(player, start, act, steps, scene, solved)
    write_video(folder, played.frames, config.fps)
    write_actions(folder, player.actions)
    summary = f"{truth} next to the model rollout" if truth else "model rollout"
    towards, speed_note = "", ""
    # a video that could be longer names what ends it
    ended = f" (--steps {config.steps})" if len(played.frames) > config.steps else ""
    if goal is not None:
        towards, speed_note = f" towards {goal.name}", ", planning included"
    print(
        f"play: {len(played.frames)} frames{ended}, {summary}, {source} actions{towards}, from "
        f"{starts.describe(start)}, {played.frames_per_second:.0f} frames/s{speed_note}"
    )
    if player.observes_each_step and player.simulator is not None:
        print(f"play: {player.simulator.status()} after {player.steps} steps of real frames")
    if goal is not None and not goal.has_time and played.coverages:
        best = int(np.argmax(played.coverages))
        note = ", where the task is solved" if played.coverages[best] >= SOLVED else ""
        print(
            f"play: the simulator's coverage is {played.coverages[best]:.2f} at step {best}, "
            f"its highest{note if goal.is_task else ''}"
        )
    print(f"play: {folder / 'rollout.gif'}, {folder / 'rollout.mp4'}, {folder / 'frames'}")


def check_video_size(steps: int, frame_bytes: int) -> None:
    """A video is held in memory until it is written."""
    num_bytes = (steps + 1) * frame_bytes
    if num_bytes > MAX_VIDEO_BYTES:
        raise ValueError(
            f"--steps {steps} makes a video of {num_bytes / 2**30:.1f} GB, and at most "
            f"{MAX_VIDEO_BYTES / 2**30:g} GB are held in memory; give fewer --steps or a smaller "
            f"--size"
        )


def make_actor(
    config: Config, source: ActionSource, player: Player, start: Start, goal: Goal | None
) -> tuple[Actor, int]:
    """Return who acts, and for how many steps it can.  goal: where one is needed."""
    spec = player.action_spec
    if source == "actor_critic":
        return lambda step: player.controller_action(), config.steps
    if source == "dataset":
        return lambda step: start.next_actions[step], len(start.next_frames)
    if source == "file":
        assert config.actions_file is not None
        loaded = read_actions(config.actions_file, spec)
        return lambda step: loaded[step], len(loaded)
    if source == "script":
        scripted = script_actions(spec, config.steps)
        return lambda step: scripted[step], config.steps
    if source == "random":
        num_actions = -(-config.steps // RANDOM_ACTION_REPEAT)
        sampled = spec.sample(num_actions, np.random.default_rng(config.seed))
        return lambda step: sampled[step // RANDOM_ACTION_REPEAT], config.steps
    assert goal is not None
    executor = make_goal_executor(config, source, player.world, goal)
    actor = GoalActor(player, executor, goal, config.observe_simulator)
    return lambda step: actor.act(), config.steps


# -- a window ------------------------------------------------------------------------------------


def run_window(
    config: Config,
    player: Player,
    starts: Starts,
    buttons: Buttons | None,
    planning: SharedPlanning,
) -> None:
    """Open the window and play until it is closed."""
    game = Game(
        player,
        starts,
        first_start(config, starts),
        videos_folder(config),
        config.size or WINDOW_SIZE,
        config.fps,
        show_simulator=shows_simulator(config),
        use_controller=config.actions == "actor_critic",
        autopilot=planning.autopilot(player),
        buttons=buttons,
    )
    planning.begin(game)
    print(f"play: {PLACES}")
    with Window(f"dreamstage {config.run}") as window:
        try:
            loop(game, window)
        finally:
            game.close()


def loop(game: Game, window: Window) -> None:
    """Tick at the game's pace, and read keys and mouse in between."""
    next_tick = time.perf_counter()
    while not game.quit_requested and not window.closed:
        window.show(game.tick())
        next_tick = max(next_tick + 1 / game.fps, time.perf_counter())
        while True:
            remaining = next_tick - time.perf_counter()
            keys = window.poll_keys(1000 * remaining)
            position = window.poll_mouse()
            if position is not None:
                game.move_pointer(*position)
            for down in window.poll_buttons():
                game.mouse_button(down)
            for key in keys:
                if key.down:
                    game.press(key.name, key.repeated, key.label)
                else:
                    game.release(key.name)
            is_late = time.perf_counter() >= next_tick
            if is_late or game.quit_requested or window.closed or (keys and game.paused):
                break


# -- a page --------------------------------------------------------------------------------------


def run_browser(
    config: Config,
    make_player: Callable[[], Player],
    starts: Starts,
    buttons: Buttons | None,
    planning: SharedPlanning,
    listening: socket,
) -> None:
    """Serve the page; each visitor has a game of their own in the one world."""

    def make_game(
        folder: Path, save: Callable[[Recording], str] | None = None, longest_recording: int = 0
    ) -> Game:
        player = make_player()
        game = Game(
            player,
            starts,
            first_start(config, starts),
            folder,
            config.size or VIDEO_SIZE,
            config.fps,
            show_simulator=shows_simulator(config),
            use_controller=config.actions == "actor_critic",
            autopilot=planning.autopilot(player),
            buttons=buttons,
            save=save,
            longest_recording=longest_recording,
        )
        planning.begin(game)
        return game

    make_game(videos_folder(config)).tick()  # what cannot work is told now, and the world is warm
    serve.serve(make_game, config.server, config.fps, listening)


if __name__ == "__main__":
    run_cli(main, Config, "play")
