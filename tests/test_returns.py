"""The return protocol: figures, and a whole evaluation in a gymnasium environment."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import counting_env  # noqa: F401  (registers Counting-v0)
import numpy as np
import pytest
from untrained_run import write_run

import evaluate
import play
import preprocess
from data.gym.env_group import SeparateEnvs
from data.gym.env_spec import EnvSpec, env_spec_of
from data.gym.pixel_env import PixelEnv
from data.gym.recording_policies import RandomPolicy
from data.shards.episode_dataset import EpisodeDataset
from evaluation.protocols.returns import Returns, play_returns, summarize
from evaluation.report.metrics_schema import RETURNS
from pipeline import presets, publish
from pipeline.inference.load_world import load_world
from pipeline.play.player import StartSampler
from pipeline.recording.gym_config import GymConfig

SPEC = EnvSpec("Counting-v0", image_size=16)


@pytest.mark.parametrize("num_envs", [1, 3, 20])
def test_returns_are_sums_of_whole_episodes(num_envs: int):
    """In this environment the reward of a step is its number, and the length follows from the
    seed."""
    envs = SeparateEnvs(SPEC, num_envs)
    played = play_returns(RandomPolicy(envs.actions), envs, list(range(8)))
    assert (played.returns == played.lengths * (played.lengths + 1) / 2).all()
    assert ((played.lengths >= 3) & (played.lengths <= 7)).all()
    assert (played.terminated == (played.lengths % 2 == 1)).all()
    again = play_returns(RandomPolicy(envs.actions), SeparateEnvs(SPEC, 2), list(range(8)))
    assert (again.returns == played.returns).all()


def test_one_episode_has_no_interval():
    many = Returns(np.array([1.0, 2.0, 6.0]), np.array([1, 2, 3]), np.array([True, False, True]))
    found = summarize(many)
    assert set(found) == set(RETURNS)
    assert (found["return"], found["median"], found["n"]) == (3.0, 2.0, 3)
    assert 1.0 <= found["low"] < 3.0 < found["high"] <= 6.0 and found["terminated"] == 2 / 3
    one = summarize(Returns(np.ones(1), np.ones(1, np.int64), np.ones(1, bool)))
    assert one["low"] is None and one["return"] == 1.0


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cart")
    config = GymConfig(folder, env="CartPole-v1", num_workers=1, episodes=10, resolution=32)
    preprocess.gym(config)
    write_run(folder, EpisodeDataset(folder / "shards"))
    preprocess.gym(replace(config, policy=str(folder), episodes=0, steps=120, env=""))
    return folder


def measure(run: Path, **changes: Any) -> dict[str, Any]:
    config = presets.apply(evaluate.Config(), "evaluate", ["pusht", "debug"])
    evaluate.main(replace(config, run=run, num_workers=1, **changes))
    return json.loads((run / "report" / "metrics.json").read_text())


def test_an_evaluation_plays_the_environment_of_the_shards(run: Path):
    metrics = measure(run, protocol=("returns",), return_max_steps=9)
    rows = metrics["returns"]
    assert {name: row["n"] for name, row in rows.items() if name != "recorded"} == {
        "actor_critic": 4, "bc": 4, "random": 4,
    }  # fmt: skip
    for name in ("actor_critic", "bc", "random"):
        assert rows[name]["return"] == rows[name]["length"] <= 9  # CartPole gives 1 a step
    assert metrics["task"]["random"]["n"] is None  # another world's protocol
    page = (run / "report" / "index.html").read_text()
    assert "Return in the environment" in page
    assert "push the block" not in page and "Goal reaching" not in page  # nothing of Push-T
    assert (run / "report" / "plots" / "returns.png").exists()


def test_recorded_episodes_count_by_round_and_only_whole_ones(run: Path):
    metrics, dataset = measure(run, protocol=("returns",)), EpisodeDataset(run / "shards")
    rounds = np.array([note["round"] for note in dataset.notes])
    whole = np.array([not note.get("cut") for note in dataset.notes])
    first, last = metrics["return_curve"]
    assert (first["steps_before"], first["n"], first["policy"]) == (0, 10, "random")
    assert first["steps"] == last["steps_before"] == int((dataset.lengths[:10] - 1).sum())
    assert last["steps"] == 120 and last["policy"] == str(run)
    assert last["n"] == metrics["returns"]["recorded"]["n"] == int((whole & (rounds == 1)).sum())
    assert (run / "report" / "plots" / "return_curve.png").exists()


def test_a_policy_that_the_run_lacks_is_named_with_the_reason(run: Path):
    with pytest.raises(
        ValueError, match="--policies planner: the return protocol does not have it"
    ):
        measure(run, policies=("planner",))
    with pytest.raises(
        ValueError, match="--policies nobody: unknown; choose from actor_critic, bc"
    ):
        measure(run, policies=("nobody",))


def test_a_protocol_of_another_world_is_refused(run: Path):
    with pytest.raises(
        ValueError, match=r"--protocol task: .* is of CartPole-v1, .*; choose from returns"
    ):
        measure(run, protocol=("task",))


def test_the_card_names_the_environment_and_the_returns(run: Path, tmp_path: Path):
    measure(run, protocol=("returns",))
    rows = json.loads((run / "report" / "metrics.json").read_text())["returns"]
    out = tmp_path / "files"
    publish.main(publish.Config(run, "user/cart", "mit", "mit", out=out))
    card = (out / "README.md").read_text()
    assert "| Environment | gymnasium's CartPole-v1 |" in card
    row = rows["bc"]
    wanted = f"| `returns.bc.return` | {row['return']:.6g} | [{row['low']:.6g}, {row['high']:.6g}]"
    assert wanted in card and "`returns.random.return`" in card


def test_the_controller_is_watched_in_the_environment_itself(run: Path, tmp_path: Path, capsys):
    config = presets.apply(play.Config(), "play", ["pusht", "debug"])
    out = tmp_path / "video"
    settings: dict[str, Any] = {"run": run, "out": out, "headless": True, "steps": 200}
    play.main(replace(config, **settings, actions="actor_critic", observe_simulator=True))
    said = capsys.readouterr().out
    taken = np.load(out / "actions.npy")
    # an untrained policy lets the pole fall, and the video ends there
    assert f"(ended) after {len(taken)} steps of real frames" in said and len(taken) < 200
    found = re.search(r"from frame (\d+) of episode (\d+) \(test\)", said)
    assert found is not None
    frame, number = map(int, found.groups())
    dataset = EpisodeDataset(run / "shards")
    world = load_world(run)
    episodes = StartSampler(dataset, "test", world.context, 0).episodes
    spec = env_spec_of(dataset.description)
    assert spec is not None
    env = PixelEnv(spec)
    seed = dataset.notes[episodes[number]]["seed"]
    env.reset(seed)
    actions = [*dataset.read(episodes[number], "actions", 0, frame), *taken]
    results = [env.step(action) for action in actions]
    assert results[-1].done and not any(result.done for result in results[:-1])
