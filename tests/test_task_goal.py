"""Other goals of Push-T than the task's own: in shards, training, play and a whole evaluation."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from pointer_world import PointerWorld
from test_task import SEED, add_task_cost, config_of
from untrained_run import write_run

import evaluate
import preprocess
import train_controller
from data.pusht.demo_data import load_demos
from data.pusht.perturbed_demos import PerturbedDemos
from data.pusht.scripted_episodes import ScriptedEpisodes
from data.pusht.scripted_policy import ScriptedPolicy
from data.pusht.simulator import ACTIONS, GOAL, PushT, angle_difference, goal_of, reward
from data.pusht.symmetries import NUM_SYMMETRIES, mirror, transform, turn
from data.pusht.task_goal import Goal, as_note, as_pose
from data.pusht.vector_pusht import VectorPushT
from data.shards.episode_dataset import EpisodeDataset
from evaluation.protocols import goals, task
from evaluation.protocols.policies import NoOp, Observation
from models.world import World
from pipeline.play.player import Player, StartSampler
from pipeline.play.simulators import open_simulator
from pipeline.training.controller_config import why_not

OTHER: Goal = (180.0, 320.0, -10.0)
TASK: Goal = (256.0, 256.0, 45.0)


def write_demos(folder: Path, count: int = 12, steps: int = 30, goal: Goal = OTHER) -> str:
    """Write demonstrations of the scripted policy, from beside a goal."""
    rng, states, actions, pose = np.random.default_rng(0), [], [], as_pose(goal)
    world, policy = PushT(16), ScriptedPolicy(pose)
    for _ in range(count):
        world.reset(np.array([420.0, 90.0, *(pose + rng.normal(0, [12, 12, 0.15]))]))
        for _ in range(steps):
            states.append(world.state)
            actions.append(policy.act(world.state))
            world.step(actions[-1])
    ends = steps * np.arange(1, count + 1)
    np.savez(folder / "demos.npz", state=states, action=actions, episode_ends=ends)
    load_demos.cache_clear()
    return str(folder / "demos.npz")


def make_shards(run: Path, **options: Any) -> EpisodeDataset:
    preprocess.pusht(preprocess.PushTConfig(run, resolution=32, num_workers=1, **options))
    return EpisodeDataset(run / "shards")


def start_on(goal: Goal) -> Any:
    """Every start of the task with the block on a goal, and the agent far away."""
    return lambda seed: np.array([450.0, 60.0, *as_pose(goal)])


def measure(run: Path, **changes: Any) -> dict[str, Any]:
    evaluate.main(config_of(run, restart=True, **changes))
    return json.loads((run / "report" / "metrics.json").read_text())


# -- one other goal ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def other_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on demonstrations of another goal, with the cost of its task."""
    run = tmp_path_factory.mktemp("other")
    dataset = make_shards(run, demos=write_demos(run), goal=OTHER)
    write_run(run, dataset, method="keypoints")
    add_task_cost(run)
    return run


def test_a_whole_evaluation_is_that_of_the_goal_of_the_shards(
    other_run: Path, monkeypatch: pytest.MonkeyPatch
):
    policies = ("noop", "scripted", "planner", "policy_prior", "goal_policy", "oracle_cem")
    monkeypatch.setattr(task, "random_start", start_on(OTHER))
    metrics = measure(other_run, policies=policies, search_episodes=1)
    for name in policies:  # the block lies there, and an episode ends at once
        row = metrics["task"][name]
        assert row["n"] and row["success"] == 1 == row["steps"] == row["score"], name
    assert metrics["provenance"]["task_goal"] == list(OTHER)
    page = (other_run / "report" / "index.html").read_text()
    assert "A trial of Diffusion Policy" in page and "towards the goal 180 320 -10" in page
    monkeypatch.setattr(task, "random_start", start_on(TASK))
    assert measure(other_run, policies=("noop",))["task"]["noop"]["score"] < 0.9


def test_the_cost_of_the_task_has_the_goal_of_the_shards(other_run: Path):
    with evaluate.Session(other_run, None, None, 1, 2) as session:
        cost = session.task_cost
    assert cost is not None
    x, y, angle = cost.states(cost.goal[None])[0, 2:].tolist()
    assert np.hypot(x - OTHER[0], y - OTHER[1]) < 12
    assert abs(angle_difference(angle, np.deg2rad(OTHER[2]))) < 0.2


# -- a goal that is given to the evaluation ------------------------------------------------------


def test_the_task_is_measured_towards_a_given_goal(
    other_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    given: Goal = (330.0, 200.0, 120.0)
    monkeypatch.setattr(task, "random_start", start_on(given))
    policies = ("noop", "scripted", "bc")
    assert measure(other_run, policies=policies)["task"]["noop"]["success"] == 0
    metrics = measure(other_run, policies=policies, task_goal=given)
    assert all(metrics["task"][name]["success"] == 1 for name in policies)
    assert metrics["task"]["planner"]["n"] is None
    assert "planner, goal_policy, oracle_cem are left out: the task cost" in capsys.readouterr().out
    with pytest.raises(ValueError, match="--policies planner: the task cost .*out --task-goal; ch"):
        measure(other_run, policies=("planner",), task_goal=given)
    with pytest.raises(ValueError, match="--task-goal -5 9 is outside of the world"):
        evaluate.Config(task_goal=(-5.0, 9.0, 0.0))


def test_the_drawn_goal_is_the_given_one_and_gone_in_the_next_episode(other_run: Path):
    class Looks(NoOp):
        needs_pixels = True

        def act(self, obs: Observation) -> np.ndarray:
            assert obs.frames is not None
            frames.append(obs.frames[0])
            return super().act(obs)

    frames: list[np.ndarray] = []
    with evaluate.Session(other_run, None, None, 1, 1) as session:
        for goal in (None, GOAL, None):
            task.run_task(Looks(), session.envs, [SEED], steps=1, goal=goal)
    assert np.array_equal(frames[0], frames[2]) and not np.array_equal(frames[0], frames[1])


# -- a goal for each episode ---------------------------------------------------------------------


def test_a_scene_is_turned_and_mirrored_as_a_whole():
    state = np.array([100.0, 40.0, *GOAL])
    assert np.allclose(turn(state, 1), [472, 100, 256, 256, 3 * np.pi / 4])
    assert np.allclose(turn(turn(state, 3), 1), state) and np.allclose(mirror(mirror(state)), state)
    assert np.allclose(turn(state[:2], 1), [472, 100])
    assert np.allclose(turn(GOAL, 1), [256, 256, 3 * np.pi / 4])
    different = {tuple(transform(state, s).round(6)) for s in range(NUM_SYMMETRIES)}
    assert len(different) == NUM_SYMMETRIES


def test_copies_are_turned_with_their_goals_which_they_still_reach(tmp_path: Path):
    source = PerturbedDemos(write_demos(tmp_path, 2), 8, 64, goal=OTHER, random_goal=True)
    plain = PerturbedDemos(source.path, 1, 64, goal=OTHER).episode(PushT(64), 0, 0)
    assert plain.states is not None and plain.rewards is not None
    poses = [goal_of(as_note(transform(as_pose(OTHER), s))) for s in range(NUM_SYMMETRIES)]
    simulator, seen = PushT(64), set()
    for copy in range(8):
        episode = source.episode(simulator, 0, copy)
        goal = goal_of(episode.notes)
        (symmetry,) = [s for s, pose in enumerate(poses) if np.allclose(pose, goal, atol=1e-3)]
        seen.add(symmetry)
        assert episode.states is not None and episode.rewards is not None
        expected = transform(plain.states, symmetry)
        assert np.abs(episode.states[:, :4] - expected[:, :4]).max() < 0.05
        np.testing.assert_allclose(episode.rewards, plain.rewards, atol=1e-3)
        # the frame as a whole is turned, with the goal that is drawn in it
        image = plain.frames[-1]
        mirrored = np.rot90(image, 2).transpose(1, 0, 2) if symmetry >= 4 else image
        turned = np.rot90(mirrored, -(symmetry % 4)).astype(int)
        error = np.abs(turned - episode.frames[-1]).mean()
        assert error < 2
        if symmetry:
            assert np.abs(image.astype(int) - episode.frames[-1]).mean() > error + 1
    assert seen == set(range(NUM_SYMMETRIES))
    assert plain.rewards[-1] > 0.5


def test_copies_beyond_the_first_of_each_kind_are_perturbed(tmp_path: Path):
    source = PerturbedDemos(write_demos(tmp_path, 1), 16, 16, random_goal=True)
    exact, noisy = (source.episode(PushT(16), 0, copy) for copy in (3, 11))
    assert exact.notes == noisy.notes
    assert exact.actions is not None and noisy.actions is not None
    assert not np.allclose(exact.actions, noisy.actions)


def test_shards_without_goals_of_their_own_are_described_as_before(tmp_path: Path):
    path = write_demos(tmp_path, 2)
    assert "random_goal" not in PerturbedDemos(path, 2).description()["settings"]
    assert "random_goal" not in ScriptedEpisodes(2).description()["settings"]
    assert PerturbedDemos(path, 2, random_goal=True).description()["settings"]["random_goal"]
    assert not any(episode.notes for episode in PerturbedDemos(path, 2, 16).make_shard(0))


def test_scripted_episodes_draw_goals_anywhere_and_are_rewarded_for_them():
    plain = ScriptedEpisodes(6, 16).make_shard(0)
    varied = ScriptedEpisodes(6, 16, random_goal=True).make_shard(0)
    poses = set()
    for episode, other in zip(varied, plain, strict=True):
        assert episode.states is not None and episode.rewards is not None
        assert other.states is not None
        world = PushT(16)
        world.reset(episode.states[-1], goal=goal_of(episode.notes))
        assert episode.rewards[-1] == pytest.approx(float(reward(world.coverage())), abs=0.01)
        assert np.array_equal(episode.states[0], other.states[0])
        poses.add(tuple(episode.notes["goal"]))
    assert len(poses) == 6


@pytest.fixture(scope="module")
def varied(tmp_path_factory: pytest.TempPathFactory) -> EpisodeDataset:
    run = tmp_path_factory.mktemp("varied")
    return make_shards(run, demos=write_demos(run, 12, 60, TASK), perturb=4, random_goal=True)


def test_stage_1_says_which_goals_there_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = write_demos(tmp_path, 3, goal=TASK)
    make_shards(tmp_path, demos=path, perturb=8, random_goal=True)
    line = "goals: 4 poses of the block in 24 episodes (x y degrees: 256 256 45, 256 256 135, "
    assert line in capsys.readouterr().out
    with pytest.raises(ValueError, match="--random-goal turns and mirrors .*give --perturb K too"):
        make_shards(tmp_path / "b", demos=path, random_goal=True)
    with pytest.raises(ValueError, match=r"holds shards with .*--restart"):
        make_shards(tmp_path, demos=path, perturb=8)


def test_pairs_are_played_with_the_goal_of_their_episode_drawn(varied: EpisodeDataset):
    class Looks(NoOp):
        needs_pixels = True

        def reset(self, obs: Observation, goal: Observation | None) -> None:
            super().reset(obs, goal)
            assert obs.frames is not None
            starts.append(obs.frames)

    starts: list[np.ndarray] = []
    pairs = goals.sample_pairs(varied, 25, 6, 0)
    with VectorPushT(6, 32, 1) as envs:
        goals.run_pairs(Looks(), envs, varied, pairs, budget=1)
    for frame, pair in zip(starts[0], pairs, strict=True):
        truth = varied.read(pair.episode, "frames", pair.start, pair.start + 1)[0]
        assert np.abs(frame.transpose(1, 2, 0).astype(int) - truth).mean() < 0.5


def test_the_simulator_of_play_has_the_goal_of_the_episode(varied: EpisodeDataset):
    starts = StartSampler(varied, "train", context=3, seed=0)
    player = Player(cast(World, PointerWorld(ACTIONS)), simulator=open_simulator(varied))
    drawn = set()
    for number in range(8):
        start = starts.at(number)
        player.reset(start)
        shown = player.simulator_frame().astype(int)
        assert np.abs(shown - player.dataset_frame()).mean() < 0.5
        drawn.add(tuple(varied.notes[start.episode]["goal"]))
    assert len(drawn) > 1


def test_the_cost_of_a_task_is_not_learned_of_several_goals(varied: EpisodeDataset):
    class HasRewards:
        has_rewards = True

    config = replace(train_controller.Config(), run=varied.folder.parent)
    reason = why_not(config, "task_cost", cast(World, HasRewards()), varied)
    assert "has 4 goals of episodes, a task's cost only one" in reason
