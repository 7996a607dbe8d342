"""Other goals of Push-T than the task's own: in shards, training, play and a whole evaluation."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from pointer_world import PointerWorld
from test_task import SEED, add_task_cost, config_of
from untrained_run import write_run

import evaluate
import play
import preprocess
import train_controller
from data.pusht.demo_data import load_demos
from data.pusht.perturbed_demos import PerturbedDemos
from data.pusht.scripted_episodes import ScriptedEpisodes
from data.pusht.scripted_policy import ScriptedPolicy
from data.pusht.simulator import ACTIONS, GOAL, PushT, angle_difference, goal_of, reward
from data.pusht.symmetries import Motion, mirror, random_motion
from data.pusht.task_goal import Goal, as_pose
from data.pusht.vector_pusht import VectorPushT
from data.shards.episode_dataset import EpisodeDataset
from evaluation.protocols import goals, task
from evaluation.protocols.policies import NoOp, Observation
from models.world import World
from pipeline import checkpoint, presets, tensor_file
from pipeline.inference.load_controllers import load_canonical_policy, load_task_cost
from pipeline.inference.load_world import load_world
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
    policies = (*policies, "planner", "oracle_cem")
    metrics = measure(other_run, policies=policies, task_goal=given)
    assert all(metrics["task"][name]["success"] == 1 for name in policies)
    assert "policy_prior and goal_policy are left out: it is given image" in capsys.readouterr().out
    with pytest.raises(
        ValueError, match="--policies policy_prior: it is given images of .*best_of"
    ):
        measure(other_run, policies=("policy_prior",), task_goal=given)
    with pytest.raises(ValueError, match="--policies best_of_n: no .*canonical_policy"):
        measure(other_run, policies=("best_of_n",), task_goal=given)
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
            given = None if goal is None else goal[None]
            task.run_task(Looks(), session.envs, [SEED], steps=1, goals=given)
    assert np.array_equal(frames[0], frames[2]) and not np.array_equal(frames[0], frames[1])


# -- a goal for each episode ---------------------------------------------------------------------


def test_a_scene_is_moved_as_a_whole():
    state, quarter = np.array([100.0, 40.0, *GOAL]), Motion(angle=np.pi / 2)
    assert np.allclose(quarter(state), [472, 100, 256, 256, 3 * np.pi / 4])
    assert np.allclose(Motion(angle=-np.pi / 2)(quarter(state)), state)
    assert np.allclose(mirror(mirror(state)), state)
    assert np.allclose(quarter(state[:2]), [472, 100])
    assert np.allclose(Motion(shift=(7.0, -9.0))(state), [107, 31, 263, 247, np.pi / 4])
    assert np.array_equal(Motion()(state), state)
    assert np.array_equal(Motion(mirrored=True)(state), mirror(state))


def test_a_moved_episode_stays_within_the_walls():
    rng = np.random.default_rng(0)
    states = np.tile([300.0, 420.0, 380.0, 300.0, 2.0], (3, 1)) + rng.normal(0, 5, (3, 5))
    targets = states[:, :2] + 20
    shifts = set()
    for _ in range(50):
        motion = random_motion(rng, states, targets)
        assert motion(targets).min() >= 0 and motion(targets).max() <= 512
        agent = motion(states)[:, :2]
        assert agent.min() >= 20 and agent.max() <= 492  # its radius, and the wall
        shifts.add(motion.shift)
    assert len(shifts) == 50
    # where nothing fits but as it is, quarter turns are left
    wide = np.array([[256.0, 1, 256, 256, 0], [256, 511, 256, 256, 0], [1, 256, 256, 256, 0]])
    motion = random_motion(rng, wide, np.array([[0.0, 0], [512, 512]]))
    assert motion.shift == (0.0, 0.0) and motion.angle % (np.pi / 2) < 1e-9


def test_copies_are_moved_with_their_goals_which_they_still_reach(tmp_path: Path):
    source = PerturbedDemos(write_demos(tmp_path, 2), 8, 64, goal=OTHER, random_goal=True)
    plain = PerturbedDemos(source.path, 1, 64, goal=OTHER).episode(PushT(64), 0, 0)
    assert plain.states is not None and plain.rewards is not None
    assert plain.rewards[-1] > 0.5
    simulator, poses = PushT(64), set()
    for demo, copy in ((0, 0), (0, 1), (1, 0)):
        episode = source.episode(simulator, demo, copy)
        pose = goal_of(episode.notes)
        poses.add(tuple(pose))
        assert episode.states is not None and episode.rewards is not None
        if demo:
            continue
        # seen from its goal, the block goes the same way, mirrored or not
        own, before = (
            _seen_from(goal, s)
            for goal, s in ((pose, episode.states), (as_pose(OTHER), plain.states))
        )
        same = np.abs(own - before).max() < 0.2
        assert same or np.abs(own * [-1, 1, -1] - before).max() < 0.2
        np.testing.assert_allclose(episode.rewards, plain.rewards, atol=0.01)
        world = PushT(64)
        world.reset(episode.states[-1], goal=pose)
        assert np.abs(world.render().astype(int) - episode.frames[-1]).mean() < 0.5
    assert len(poses) == 3


def _seen_from(goal: np.ndarray, states: np.ndarray) -> np.ndarray:
    """The block's pose in the frame of the goal, (T, 3): x, y and the sine of the angle."""
    x, y = (states[:, 2:4] - goal[:2]).T
    sin, cos = np.sin(goal[2]), np.cos(goal[2])
    return np.stack([cos * x + sin * y, cos * y - sin * x, np.sin(states[:, 4] - goal[2])], 1)


def test_copies_beyond_the_first_two_are_perturbed(tmp_path: Path):
    source = PerturbedDemos(write_demos(tmp_path, 1), 4, 16, random_goal=True)
    plain = PerturbedDemos(source.path, 1, 16).episode(PushT(16), 0, 0)
    lengths = []
    for copy in range(4):
        actions = source.episode(PushT(16), 0, copy).actions
        assert actions is not None and plain.actions is not None
        steps = [np.linalg.norm(np.diff(a, axis=0), axis=1) for a in (actions, plain.actions)]
        lengths.append(np.abs(steps[0] - steps[1]).max())
    assert max(lengths[:2]) < 1e-3 < 1 < min(lengths[2:])


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
    line = "goals: 24 poses of the block in 24 episodes (x y degrees: "
    assert line in capsys.readouterr().out
    with pytest.raises(ValueError, match="--random-goal moves copies .*give --perturb K too"):
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


def test_each_episode_of_the_task_may_draw_its_goal(
    other_run: Path, monkeypatch: pytest.MonkeyPatch
):
    goals = task.random_goals([SEED, SEED + 1])
    assert np.array_equal(goals[1], task.random_goals([SEED + 1])[0])
    assert not np.allclose(goals[0], goals[1])
    starts = {SEED + i: np.array([450.0, 60.0, *goal]) for i, goal in enumerate(goals)}
    monkeypatch.setattr(task, "random_start", starts.__getitem__)
    policies = ("noop", "scripted", "planner", "oracle_cem")
    metrics = measure(other_run, policies=policies, random_goal=True)
    assert all(metrics["task"][name]["success"] == 1 for name in policies)
    assert metrics["provenance"]["task_goal"] == "random"
    page = (other_run / "report" / "index.html").read_text()
    assert "towards a goal that each seed draws anywhere" in page
    with pytest.raises(ValueError, match="--task-goal and --random-goal exclude each other"):
        evaluate.Config(task_goal=OTHER, random_goal=True)
    with pytest.raises(ValueError, match="--random-goal is of the task protocol"):
        evaluate.Config(random_goal=True, protocol=("strict",))


def test_a_cost_without_a_pose_is_left_out_for_other_goals(
    other_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    old = Path(shutil.copytree(other_run, tmp_path / "old"))
    path = old / "controller" / "task_cost" / "best.pt"
    saved = torch.load(path, weights_only=True)
    del saved["config"]["goal"]  # as it was before goals had poses
    saved["fingerprint"] = checkpoint.fingerprint(saved["model"], saved["config"])
    del saved["digest"]
    tensor_file.save(path, saved)
    with pytest.raises(ValueError, match="--policies planner: the task cost knows no pose"):
        measure(old, policies=("planner",), random_goal=True)
    assert "are left out: the task cost knows no pose of its goal" in capsys.readouterr().out


# -- a run on goals that differ ------------------------------------------------------------------


@pytest.fixture(scope="module")
def varied_run(varied: EpisodeDataset) -> Path:
    """Stage 4 on untrained models: the cost, and an imitator that knows every goal."""
    run = varied.folder.parent
    write_run(run, varied, method="keypoints")
    config = replace(
        presets.apply(train_controller.Config(), "controller", ["keypoints", "debug"]), run=run
    )
    train_controller.main(replace(config, methods=("task_cost", "canonical_policy")))
    return run


def test_cost_and_imitator_learn_of_goals_that_differ(varied_run: Path, varied: EpisodeDataset):
    world = load_world(varied_run)
    cost, policy = load_task_cost(varied_run, world), load_canonical_policy(varied_run, world)
    assert cost is not None and policy is not None
    assert cost.frame.is_known and policy.config.goal == cost.config.goal
    goals = np.stack([goal_of(note) for note in varied.notes])
    assert np.abs(np.array(cost.frame.home[:2]) - goals[:, :2].mean(0)).max() < 20
    # frames at their goals, seen from there, are where the goal of the cost is
    at_goal = cost.frame.pose(cost.goal[None] * cost.feature_std + cost.feature_mean)
    assert np.abs(at_goal[0, :2].numpy() - cost.frame.home[:2]).max() < 15


def test_episodes_with_goals_of_their_own_are_measured_and_played(
    varied_run: Path, capsys: pytest.CaptureFixture[str]
):
    policies = ("best_of_n", "canonical_policy", "planner", "oracle_cem", "noop")
    metrics = measure(varied_run, policies=policies, random_goal=True)
    assert all(metrics["task"][name]["n"] for name in policies)
    own = measure(varied_run, policies=policies)  # the task's goal, which is none of the cost's
    assert own["provenance"]["task_goal"] is None and own["task"]["best_of_n"]["n"]
    config = replace(
        presets.apply(play.Config(), "play", ["keypoints", "debug"]),
        run=varied_run,
        headless=True,
        compare_simulator=True,
        goal=("task",),
        steps=4,
    )
    play.main(replace(config, actions="best_of_n"))
    assert "best_of_n actions towards the task, from frame 10" in capsys.readouterr().out
    with pytest.raises(ValueError, match="--actions policy_prior is given images of a goal"):
        play.main(replace(config, actions="policy_prior"))
    with pytest.raises(ValueError, match="--goal task: the task cost of .* other goals"):
        measure(varied_run, protocol=(), goal=("task",))


def test_what_learns_one_goal_alone_is_left_out_of_several(varied: EpisodeDataset):
    class HasRewards:
        has_rewards = True

    config = replace(train_controller.Config(), run=varied.folder.parent)
    world = cast(World, HasRewards())
    assert not why_not(config, "task_cost", world, varied)
    assert not why_not(config, "canonical_policy", world, varied)
    assert "goals of episodes, and this learns one" in why_not(
        config, "distilled_policy", world, varied
    )
