"""Evaluation towards a given goal: the planner's own cost, and the pose of the block."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_record_video import Counters, Still
from test_task import SEED, add_task_cost, config_of
from torch import Tensor
from untrained_run import write_run

import evaluate
from data.pusht.scripted_episodes import ScriptedEpisodes
from data.pusht.simulator import PushT, random_start
from data.pusht.task_goal import Goal, as_pose
from data.shards.build_shards import build
from data.shards.episode_dataset import EpisodeDataset
from data.toy import write_toy_shards
from evaluation.protocols.given_goal import CostMeter, block_errors, run_given_goal, summarize
from evaluation.protocols.rollout import Trajectories
from evaluation.report.metrics_schema import GIVEN_GOAL_FIGURES, GIVEN_GOAL_POLICIES, empty_metrics
from pipeline.play.goals import image_files

PLANNERS = ("policy_prior", "planner", "goal_policy")
POSE: Goal = (180.0, 300.0, 70.0)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run")
    build(ScriptedEpisodes(6, 32, 0), run / "shards", "", 0, 1)
    write_run(run, EpisodeDataset(run / "shards"), method="keypoints")
    add_task_cost(run)
    return run


def draw(folder: Path, number: int, pose: Goal = POSE, agent: float = 400.0) -> Path:
    """Draw the block at a pose, as a frame of the simulator."""
    world = PushT(64)
    world.reset(np.array([agent, 60.0, *as_pose(pose)]))
    folder.mkdir(exist_ok=True)
    Image.fromarray(world.render()).save(folder / f"{number}.png")
    return folder / f"{number}.png"


def measure(run: Path, *goal: Path | str, **changes: Any) -> dict[str, Any]:
    given = tuple(map(str, goal))
    evaluate.main(config_of(run, protocol=(), goal=given, search_episodes=3, **changes))
    return json.loads((run / "report" / "metrics.json").read_text())


# -- figures -------------------------------------------------------------------------------------


class BrightWorld:
    """Latents are how bright a frame is, in steps of the `Counters`."""

    device = torch.device("cpu")

    def embed(self, frames: Tensor) -> Tensor:
        return frames.float().mean((1, 2, 3))[:, None, None] / 60

    def vectors(self, latents: Tensor) -> Tensor:
        return latents


class Missing:
    """Steps that are missing to the goal, as a cost."""

    def start(self, latents: Tensor) -> Tensor:
        return latents[:, 0, 0]

    def cost(self, tracked: Tensor, goal: Tensor) -> Tensor:
        return (goal[:, 0, 0] - tracked).abs()


def metered(ends_when_solved: bool) -> list[list[float]]:
    """Play three episodes two at a time, for four steps, towards the second; the one in the middle
    covers the task's goal after the first step."""
    world: Any = BrightWorld()
    objective: Any = Missing()
    envs: Any = Counters([0, 1])
    meter = CostMeter(world, objective, torch.full((1, 1, 1), 2.0), 3, 4)
    run_given_goal(Still(), envs, [0, 1, 2], 4, ends_when_solved, (meter,), "given")
    return meter.costs.tolist()


def test_the_cost_is_that_of_the_start_and_of_what_each_step_led_to():
    assert metered(ends_when_solved=False) == [[2, 1, 0, 1, 2]] * 3
    first, solved, third = metered(ends_when_solved=True)
    assert first == third == [2, 1, 0, 1, 2] and solved == [2, 1, 1, 1, 1]


def test_figures_are_shares_of_the_start_and_errors_of_the_block():
    costs = np.array([[4.0, 1.0, 2.0], [2.0, 2.0, 2.0]])
    pose, seeds = as_pose((100.0, 100.0, 350.0)), [SEED, SEED + 1]
    states = np.zeros((2, 2, 5))
    states[:, -1, 2:] = [[103, 104, np.deg2rad(-10)], [100, 100, np.deg2rad(20)]]
    played = Trajectories(states, np.zeros((2, 2)))
    row = summarize(costs, seeds, played, pose)
    assert row["end_cost"] == pytest.approx(0.75) and row["lowest_cost"] == pytest.approx(0.625)
    assert row["block_px"] == pytest.approx(2.5) and row["block_degrees"] == pytest.approx(15)
    starts = block_errors(np.stack([random_start(seed) for seed in seeds]), pose)
    assert row["start_block_px"] == pytest.approx(starts[:, 0].mean())
    assert row["n"] == 2 and row["low"] <= 0.75 <= row["high"]
    assert set(row) == set(GIVEN_GOAL_FIGURES) - {"plan_seconds"}
    assert "block_px" not in summarize(costs, seeds, played, None)


# -- a whole run ---------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3, 9])
def test_images_are_planned_towards_in_the_simulator(run: Path, tmp_path: Path, count: int):
    for number in range(count):
        draw(tmp_path / "goal", number, agent=100.0 + 30 * number)
    metrics = measure(run, tmp_path / "goal", goal_pose=POSE)
    rows = metrics["given_goal"]
    assert set(rows) == set(GIVEN_GOAL_POLICIES)
    for name, row in rows.items():
        assert row["n"] == 3 and 0 <= row["lowest_cost"] <= 1, name
        assert row["lowest_cost"] <= row["end_cost"] and row["low"] <= row["end_cost"]
        assert row["start_block_px"] > 50 and row["block_degrees"] is not None
        assert (row["plan_seconds"] is not None) == (name in PLANNERS)
    assert rows["noop"]["block_px"] == pytest.approx(rows["noop"]["start_block_px"], abs=1)
    assert metrics["task"] == empty_metrics()["task"]  # nothing else was measured
    page = (run / "report" / "index.html").read_text()
    assert "Towards a given goal: " in page and str(tmp_path / "goal") in page
    assert (run / "report" / "plots" / "given-goal-planner.mp4").exists()


def test_the_task_is_a_goal_whose_pose_is_known(run: Path):
    rows = measure(run, "task", policies=("noop", "planner"))["given_goal"]
    for name in ("noop", "planner"):
        assert rows[name]["n"] == 3 and rows[name]["block_px"] and rows[name]["end_cost"] > 0
    assert rows["noop"]["end_cost"] == pytest.approx(1, abs=0.05)
    assert rows["random"]["n"] is None


def test_another_image_is_measured_anew(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = draw(tmp_path, 0)

    def cached(**changes: Any) -> bool:
        capsys.readouterr()
        rows = measure(run, path, policies=("planner",), **changes)["given_goal"]
        assert rows["planner"]["block_px"] is None and rows["planner"]["end_cost"] is not None
        return "given_goal-planner: cached" in capsys.readouterr().out

    assert not cached() and cached()
    assert not cached(task_patience=3)
    draw(tmp_path, 0, (200.0, 200.0, 90.0))
    assert not cached(task_patience=3)


# -- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"goal": ("",)}, "--goal has an empty name; give task or image files"),
        ({"goal": ("dataset",)}, "--goal dataset: .* give --protocol first_hit or offset50"),
        ({"goal": ("task", "a.png")}, "--goal task goes with no other goal"),
        ({"goal_pose": (1.0, 2.0, 3.0)}, "--goal-pose is that of the images of --goal"),
        ({"goal": ("a.png",), "goal_pose": (-1.0, 2.0, 3.0)}, "--goal-pose -1 2 is outside"),
        ({"protocol": ("given_goal",)}, "--protocol given_goal needs --goal"),
        ({"goal": ("task",), "task_goal": (9.0, 9.0, 0.0)}, "--task-goal is of the task protocol"),
    ],
)
def test_goals_that_cannot_be_are_refused(fields: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        replace(evaluate.Config(), **fields)


def test_a_policy_without_a_goal_and_a_missing_image_are_named(run: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="--policies bc: it is given no goal; choose from goal_po"):
        measure(run, draw(tmp_path, 0), policies=("bc",))
    with pytest.raises(ValueError, match=r"none\.png cannot be read"):
        measure(run, tmp_path / "none.png")


def test_a_world_without_a_simulator_is_refused(tmp_path: Path):
    write_toy_shards(tmp_path / "shards", episodes=6, length=40)
    run = write_run(tmp_path, EpisodeDataset(tmp_path / "shards"), method="keypoints")
    with pytest.raises(ValueError, match="--goal: only Push-T has a simulator, and .* another"):
        measure(run, draw(tmp_path, 0))


def test_a_folder_stands_for_its_images(tmp_path: Path):
    first, second = (draw(tmp_path / "goals", number) for number in (2, 10))
    (tmp_path / "goals" / "note.txt").write_text("taken on Monday")
    assert image_files([str(tmp_path / "goals"), "c.png"]) == [first, second, Path("c.png")]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty holds no image \(\.png, .*name image files"):
        image_files([str(tmp_path / "empty")])
