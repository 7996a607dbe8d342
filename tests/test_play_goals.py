"""Goals of play: a later frame of the dataset, the run's task, and images."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from PIL import Image
from pointer_world import PointerWorld, blue_at
from test_task import add_flow_policy
from untrained_run import save, write_run

import play
from data.shards.episode_dataset import EpisodeDataset
from data.toy import write_toy_shards
from models.controllers.task_cost import TaskCost, TaskCostConfig
from models.planning.goal_set import NearestGoalDistance, WhitenedGoalDistance
from models.planning.planner import PlannerConfig
from models.registry import DataSpec
from pipeline import checkpoint
from pipeline.cli import parse
from pipeline.inference.load_world import load_world
from pipeline.play import simulators
from pipeline.play.game import Game
from pipeline.play.goal_planners import best_source
from pipeline.play.goals import find_goal, image_goal, read_goal_image, task_goal
from pipeline.play.panels import CAPTION_HEIGHT, GAP
from pipeline.play.player import Player, StartSampler
from pipeline.play.simulators import open_simulator

SMALL = PlannerConfig(
    num_samples=4,
    iterations=2,
    warm_start_iterations=2,
    num_elites=2,
    horizon=2,
    running_weight=0.5,
)
SOURCES = ("planner", "goal_policy", "policy_prior")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    write_toy_shards(folder / "shards", episodes=6, length=40)
    write_run(folder, EpisodeDataset(folder / "shards"), method="keypoints")
    write_task_cost(folder)
    add_flow_policy(folder)
    return folder


def write_task_cost(run: Path) -> None:
    torch.manual_seed(0)
    world = load_world(run)
    data = DataSpec(world.image_size, world.actions, world.state_spec)
    config = TaskCostConfig(hidden_dim=8, num_goals=3)
    cost = TaskCost(config, world.state_spec, world.actions)
    frames = torch.from_numpy(EpisodeDataset(run / "shards").read(0, "frames")[:3])
    cost.goals.copy_(world.embed(frames.permute(0, 3, 1, 2)))
    path = run / "dynamics" / "best.pt"
    parent = (path, checkpoint.load(path, "dynamics")["fingerprint"])
    save(run / "controller/task_cost", "controller", cost, config, data, parent)


def config(run: Path, out: Path, **fields: Any) -> play.Config:
    base = play.Config(
        run=run, out=out, headless=True, steps=12, size=64, planner=SMALL, task_planner=SMALL
    )
    return replace(base, **fields)


def images(folder: Path, count: int, size: tuple[int, int] = (64, 64)) -> tuple[str, ...]:
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    paths = [folder / f"{i}.{'jpg' if i % 2 else 'png'}" for i in range(count)]
    for path in paths:
        Image.fromarray(rng.integers(0, 255, (*size, 3), np.uint8)).save(path)
    return tuple(map(str, paths))


def read_frames(out: Path) -> list[np.ndarray]:
    return [imageio.imread(path) for path in sorted((out / "frames").iterdir())]


# -- what acts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("source", (*SOURCES, "best_of_n"))
def test_the_task_is_acted_towards_next_to_the_simulator(
    run: Path, tmp_path: Path, source: Any, capsys: Any
):
    play.main(config(run, tmp_path, actions=source, goal=("task",), compare_simulator=True))
    shots = read_frames(tmp_path)
    assert len(shots) == 13 and len({shot.shape for shot in shots}) == 1
    assert shots[0].shape[0] > CAPTION_HEIGHT + 64  # a line says the step and the coverage
    goals = [shot[CAPTION_HEIGHT : CAPTION_HEIGHT + 64, :64] for shot in shots]
    assert all(np.array_equal(goal, goals[0]) for goal in goals)
    assert np.load(tmp_path / "actions.npy").shape == (12, 2)
    printed = capsys.readouterr().out
    assert f"{source} actions towards the task" in printed and "coverage is" in printed


@pytest.mark.parametrize("count", [1, 3, 9])
@pytest.mark.parametrize("source", SOURCES)
def test_images_are_acted_towards(run: Path, tmp_path: Path, source: Any, count: int):
    goal = images(tmp_path / "goals", count)
    play.main(config(run, tmp_path / "out", actions=source, goal=goal, steps=6))
    assert len(read_frames(tmp_path / "out")) == 7


def test_a_discrete_goal_policy_takes_images_too(tmp_path: Path):
    from data.toy import KEYS
    from models.controllers.discrete_goal_policy import DiscreteGoalPolicyConfig
    from models.controllers.policy import PolicyConfig
    from models.registry import build_controller

    write_toy_shards(tmp_path / "shards", episodes=6, factored=True)
    run = write_run(tmp_path, EpisodeDataset(tmp_path / "shards"), controllers=False)
    world = load_world(run)
    assert world.actions == KEYS
    data = DataSpec(world.image_size, world.actions, world.state_spec)
    small = DiscreteGoalPolicyConfig(PolicyConfig(channels=8, num_keypoints=4, hidden_dim=16))
    path = run / "dynamics" / "best.pt"
    parent = (path, checkpoint.load(path, "dynamics")["fingerprint"])
    policy = build_controller(small, data)
    save(run / "controller/goal_policy", "controller", policy, small, data, parent)
    for goal in (("dataset",), images(tmp_path / "goals", 2)):
        play.main(config(run, tmp_path / "out", actions="goal_policy", goal=goal, steps=4))
        assert len(read_frames(tmp_path / "out")) == 5


def test_the_world_is_moved_to_the_simulators_frames_before_each_plan(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    seen: list[int] = []

    def observe(player: Player) -> None:
        seen.append(player.steps)
        original(player)

    original = Player.observe_simulator
    monkeypatch.setattr(Player, "observe_simulator", observe)
    settings: dict[str, Any] = {"actions": "planner", "goal": ("task",), "steps": 12}
    play.main(config(run, tmp_path, observe_simulator=True, **settings))
    assert seen == [5, 10]
    assert read_frames(tmp_path)[0].shape[1] >= 3 * 64 + 2 * GAP  # the simulator is shown
    seen.clear()
    play.main(config(run, tmp_path, compare_simulator=True, **settings))
    assert not seen  # it only takes the same actions


def test_a_world_that_observes_is_where_the_simulator_is(run: Path):
    dataset, world = EpisodeDataset(run / "shards"), PointerWorld()
    start = StartSampler(dataset, "test", world.context, seed=0).at(0)
    player = Player(cast(Any, world), None, open_simulator(dataset), keep_simulator_frames=True)
    player.reset(start)
    for _ in range(6):
        player.step(np.array([400.0, 100.0]))
        player.state = replace(player.state, latents=torch.tensor([[10, 10]]))  # led away
    player.observe_simulator()
    there = blue_at(player.simulator_frame())
    assert np.abs(np.array(blue_at(player.model_frame)) - there).max() < 0.03


def test_the_video_ends_where_the_task_is_solved(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    coverage = iter(np.repeat(np.arange(0.0, 2.0, 0.25), 2))  # asked twice a step
    monkeypatch.setattr(simulators.ToySimulator, "coverage", lambda self: next(coverage))
    play.main(config(run, tmp_path, actions="goal_policy", goal=("task",), compare_simulator=True))
    assert len(read_frames(tmp_path)) == 5
    assert "1.00 at step 4, its highest, where the task is solved" in capsys.readouterr().out


@pytest.mark.parametrize(
    "source, goal, name",
    [
        ("policy_prior", (), "the task"),
        ("best_of_n", (), "the task"),
        ("goal_policy", ("task",), "the task"),
        ("planner", ("dataset",), "the dataset's frame 8 steps ahead"),
    ],
)
def test_a_planner_that_is_asked_for_begins_in_the_window(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: Any, goal: Any, name: str
):
    def a_few_ticks(game: Game, window: Any) -> None:
        autopilot = game.autopilot
        assert autopilot is not None and f"towards {name}" in autopilot.describe()
        for _ in range(6):
            game.tick()
            autopilot.wait()
        assert game.player.steps >= 4 and autopilot.plan_frame is not None
        played.append(game)

    played: list[Game] = []
    monkeypatch.setattr(play, "check_display", lambda: None)
    monkeypatch.setattr(play, "Window", lambda title: nullcontext())
    monkeypatch.setattr(play, "loop", a_few_ticks)
    asked = config(run, tmp_path, headless=False, actions=source, goal=goal, goal_offset=8)
    play.main(replace(asked, episode=0))
    assert len(played) == 1


def test_what_knows_the_task_alone_is_refused_for_another_goal(run: Path, tmp_path: Path):
    asked = config(run, tmp_path / "out", actions="best_of_n", goal=images(tmp_path, 1))
    with pytest.raises(ValueError, match="--actions best_of_n .* goal is .*; give --goal task, or"):
        play.main(asked)


def test_the_window_has_the_best_of_the_task_that_a_run_has(run: Path):
    world = load_world(run)
    goal = task_goal(run, world)
    assert best_source(run, world, goal) == "best_of_n"
    assert best_source(run, world, replace(goal, is_task=False)) == "policy_prior"


# -- what a goal is ------------------------------------------------------------------------------


def test_a_goal_among_few_images_is_the_nearest_and_among_many_what_they_share(
    run: Path, tmp_path: Path
):
    world, dataset = load_world(run), EpisodeDataset(run / "shards")
    one, few, many = (
        image_goal(world, [Path(p) for p in images(tmp_path, count)], dataset)
        for count in (1, 7, 8)
    )
    assert one.objective is None and one.latents.shape[:2] == (1, 1)
    assert isinstance(few.objective, NearestGoalDistance) and few.latents.shape[:2] == (1, 7)
    assert isinstance(many.objective, WhitenedGoalDistance) and many.latents.shape[:2] == (1, 8)
    assert not (one.has_time or few.has_time or many.has_time)
    assert many.name == "any of 8 images" and many.image.shape == (*world.image_size, 3)


def test_the_tasks_goals_are_those_that_its_cost_has_learned(run: Path):
    world = load_world(run)
    goal = task_goal(run, world)
    assert goal.objective is not None and goal.latents.shape[:2] == (1, 3) and goal.is_task
    assert goal.action_block == 5 and goal.image.shape == (*world.image_size, 3)


def test_the_datasets_frame_has_a_time(run: Path):
    world, dataset = load_world(run), EpisodeDataset(run / "shards")
    start = StartSampler(dataset, "test", world.context, seed=0).at(0)
    goal = find_goal(("dataset",), run, world, dataset, start, 8)
    assert goal.has_time and np.array_equal(goal.image, start.next_frames[7])


def test_an_image_is_resized_as_frames_are(tmp_path: Path):
    tall = np.zeros((64, 64, 3), np.uint8)
    tall[:, ::2] = 200
    Image.fromarray(tall).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_goal_image(tmp_path / "a.png", (64, 64)), tall)
    assert (read_goal_image(tmp_path / "a.png", (32, 32)) == 100).all()  # the mean of its area
    Image.fromarray(tall).convert("RGBA").save(tmp_path / "b.png")
    assert read_goal_image(tmp_path / "b.png", (32, 32)).shape == (32, 32, 3)


# -- what is refused -----------------------------------------------------------------------------


def test_a_run_without_a_task_cost_says_which_command_trains_one(run: Path, tmp_path: Path):
    for name in ("shards", "tokenizer", "dynamics"):
        (tmp_path / name).symlink_to(run / name)
    message = r"holds no task cost; python train_controller.py --run .* --methods task_cost trains"
    with pytest.raises(ValueError, match=message) as problem:
        play.main(config(tmp_path, tmp_path / "out", actions="planner", goal=("task",)))
    assert "\n" not in str(problem.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("flags", [("observe",), ("compare",), ("compare", "observe")])
def test_a_dataset_without_a_simulator_names_the_flag_that_was_given(
    run: Path, tmp_path: Path, flags: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
):
    has = EpisodeDataset.has
    monkeypatch.setattr(EpisodeDataset, "has", lambda self, f: f != "states" and has(self, f))
    given: dict[str, Any] = {f"{flag}_simulator": True for flag in flags}
    named = " and ".join(f"--{flag}-simulator" for flag in flags)
    with pytest.raises(ValueError, match=f"holds no simulator states.*; remove {named}$"):
        play.main(config(run, tmp_path, actions="planner", goal=("task",), **given))


def test_a_task_cost_of_another_world_names_the_command_that_trains_it_alone(
    run: Path, tmp_path: Path
):
    for name in ("shards", "tokenizer", "dynamics"):
        (tmp_path / name).symlink_to(run / name)
    world = load_world(run)
    data = DataSpec(world.image_size, world.actions, world.state_spec)
    cost = TaskCost(TaskCostConfig(hidden_dim=8, num_goals=3), world.state_spec, world.actions)
    parent = (run / "dynamics" / "best.pt", "0123456789abcdef")
    save(tmp_path / "controller/task_cost", "controller", cost, cost.config, data, parent)
    message = r"run python train_controller.py --run .* --methods task_cost --restart, or put"
    with pytest.raises(ValueError, match=message):
        play.main(config(tmp_path, tmp_path / "out", actions="planner", goal=("task",)))


def test_images_that_cannot_be_goals_are_refused_in_one_line(run: Path, tmp_path: Path):
    (good,) = images(tmp_path, 1)
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty").mkdir()
    (tmp_path / "cut.png").write_bytes(Path(good).read_bytes()[:200])
    Image.fromarray(np.zeros((64, 96, 3), np.uint8)).save(tmp_path / "wide.png")
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "tiny.png")
    Image.fromarray(np.zeros((64, 64), np.uint16)).save(tmp_path / "deep.png")
    for name, message in {
        "missing.png": r"missing.png cannot be read \(No such file",
        "text.png": "text.png is no image that can be decoded",
        "cut.png": "cut.png",
        "wide.png": "wide.png has 96 x 64 pixels, .* 32 x 32; cut the image",
        "tiny.png": "tiny.png has 8 x 8 pixels, fewer than .* give a larger image",
        "deep.png": "deep.png has pixels of mode I;16",
        "empty": "empty holds no image .*; name image files",
    }.items():
        goal = (good, str(tmp_path / name))
        with pytest.raises(ValueError, match=message) as problem:
            play.main(config(run, tmp_path / "out", actions="planner", goal=goal))
        assert "\n" not in str(problem.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"goal": ("task",)}, "--goal task is for .*--actions is dataset; give --actions planner"),
        ({"goal": ("a.png",), "actions": "random"}, "--actions is random"),
        ({"observe_simulator": True}, "--observe-simulator is for what acts towards a goal"),
        ({"goal": ("task", "a.png"), "actions": "planner"}, "--goal task goes with no other goal"),
        ({"goal": ("a.png", "dataset"), "actions": "planner"}, "--goal dataset goes with no other"),
        ({"goal": ("",)}, "--goal has an empty name; give dataset, task or image files, or leave"),
        ({"goal": ("a.png", " "), "actions": "planner"}, "--goal has an empty name"),
        ({"task_patience": 0}, "--task-patience 0 is out of range"),
        ({"task_receding_horizon": 0}, "--task-receding-horizon 0 is out of range"),
    ],
)
def test_options_without_an_effect_are_refused(
    run: Path, tmp_path: Path, fields: Any, message: str
):
    with pytest.raises(ValueError, match=message):
        play.main(config(run, tmp_path / "out", **fields))
    assert not (tmp_path / "out").exists()


def test_more_of_a_plan_than_it_has_is_refused_by_the_flag_that_was_given():
    config = play.Config(headless=True, actions="planner", task_receding_horizon=51)
    with pytest.raises(ValueError, match="--task-receding-horizon 51 is longer than a plan of 50"):
        play.check(config)


def test_goals_are_given_as_words_or_files():
    parsed = parse(play.Config, "play", ["--goal", "a.png", "b.jpg", "--headless"]).config
    assert parsed.goal == ("a.png", "b.jpg")
    assert parse(play.Config, "play", ["--goal", "task"]).config.goal == ("task",)
