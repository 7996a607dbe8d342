"""`preprocess.py gym`: rounds of episodes that a run's shards grow by."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import counting_env
import numpy as np
import pytest

import preprocess
from data.gym import gym_episodes
from data.gym.env_group import EnvGroup
from data.gym.env_spec import EnvSpec, env_spec_of
from data.gym.gym_episodes import GymEpisodes
from data.gym.recording_policies import CallableChoice, RandomPolicy, RecordingPolicy
from data.gym.rounds import Plan, Round, plan_round, read_rounds
from data.shards.build_shards import build
from data.shards.episode_dataset import EpisodeDataset
from data.shards.shard_header import SPLITS
from pipeline import presets
from pipeline.recording.gym_config import GymConfig
from pipeline.recording.gym_report import round_returns
from pipeline.recording.next_round import next_round
from pipeline.trained_on import episode_digests

ENV = "counting_env:Counting-v0"
Record = Callable[..., EpisodeDataset]


@pytest.fixture
def record(tmp_path: Path) -> Record:
    """Record into a run; returns its dataset."""

    def call(run: str = "run", **changes: Any) -> EpisodeDataset:
        config = GymConfig(
            tmp_path / run, env=ENV, episodes=0 if "steps" in changes else 12, resolution=16,
            num_workers=1, num_envs=3,
        )  # fmt: skip
        preprocess.gym(replace(config, **changes))
        return EpisodeDataset(tmp_path / run / "shards")

    return call


def contents(dataset: EpisodeDataset) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(dataset.folder.glob("*.h5"))}


def test_everything_of_an_episode_is_in_the_shards(record: Record):
    dataset = record()
    assert len(dataset) == 12 and dataset.image_size == (16, 16)
    assert env_spec_of(dataset.description) == EnvSpec(ENV, image_size=16)
    assert dataset.actions.kind == "discrete" and dataset.actions.size == 3
    for episode in range(len(dataset)):
        steps, actions, _ = dataset.read(episode, "frames")[:, 0, 0].T
        assert steps.tolist() == [*range(len(steps))]
        assert (actions[1:] == dataset.read(episode, "actions")[:-1] + 1).all()
        assert dataset.read(episode, "rewards").tolist() == steps.tolist()
        assert dataset.read(episode, "lives").tolist() == [3, 3, *[2] * (len(steps) - 2)]
        # odd lengths end truly, even ones by a time limit, which is no terminal
        ends = len(steps) % 2 == 0
        terminals, truncations = (dataset.read(episode, n) for n in ("terminals", "truncations"))
        assert terminals.tolist() == [*[False] * (len(steps) - 1), ends]
        assert truncations.tolist() == [*[False] * (len(steps) - 1), not ends]
    assert len({note["seed"] for note in dataset.notes}) == 12


def test_shards_depend_on_the_settings_alone(record: Record):
    first = contents(record("a"))
    assert contents(record("b", num_envs=1)) == first
    assert contents(record("c", num_workers=2)) == first
    assert contents(record("d", seed=1)) != first


def test_an_interrupted_round_is_finished_by_the_same_command(
    record: Record, monkeypatch: pytest.MonkeyPatch
):
    whole = contents(record("whole", episodes=25))
    real = gym_episodes.record_episodes
    monkeypatch.setattr(gym_episodes, "record_episodes", lambda *a: (_ for _ in ()).throw(OSError))
    with pytest.raises(OSError):
        record(episodes=25)
    monkeypatch.setattr(gym_episodes, "record_episodes", real)
    assert contents(record(episodes=25)) == whole
    folder = record(episodes=25).folder
    (folder / "shard-00001.h5").unlink()
    with pytest.raises(ValueError, match="holds 2 of 3 shards; finish them with"):
        EpisodeDataset(folder)
    assert contents(record(episodes=25)) == whole


def test_a_round_adds_episodes_and_changes_none(record: Record):
    before = record()
    old, splits, digests = (
        contents(before),
        before.splits.copy(),
        episode_digests(before, range(12)),
    )
    train = set(episode_digests(before, before.episodes("train")))
    after = record(policy="sticky-random", sticky_steps=2)
    assert len(after) == 24 and {k: contents(after)[k] for k in old} == old
    assert np.array_equal(after.splits[:12], splits)
    assert np.array_equal(episode_digests(after, range(12)), digests)
    assert train < set(episode_digests(after, after.episodes("train")))
    assert len(set(after.sources)) == 24 and after.fingerprint != before.fingerprint
    new = [SPLITS[split] for split in after.splits[12:]]
    assert {*new} == {*SPLITS} and new.count("train") >= 9
    assert [note["round"] for note in after.notes] == [0] * 12 + [1] * 12
    # seeds of the second round are its own
    assert len({note["seed"] for note in after.notes}) == 24


def test_the_same_call_again_adds_nothing_and_a_round_has_a_number(record: Record):
    assert len(record()) == 12 and len(record()) == 12
    assert len(record(round=0)) == 12 and len(record(round=0, episodes=3)) == 12
    assert len(record(round=1)) == 24  # the same settings, and yet one more
    assert len(record(round=1, policy="no such policy is needed")) == 24
    with pytest.raises(
        ValueError, match=r"--round 3: .* has 2 round\(s\), numbered from 0; record"
    ):
        record(round=3)


def test_an_early_shard_is_made_again_by_the_command_of_its_round(record: Record):
    folder = record().folder
    old = contents(record(seed=1))
    (folder / "shard-00000.h5").unlink()
    with pytest.raises(ValueError, match="lacks shard-00000.h5 of its round 0 .random.; finish"):
        record(seed=2)
    with pytest.raises(
        ValueError, match="shard-00000.h5 is not there or damaged, and was recorded"
    ):
        record(seed=1)
    assert contents(record()) == old


def test_steps_are_counted_exactly(record: Record, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("data.gym.rounds.STEPS_PER_SHARD", 70)
    dataset = record(steps=150)
    assert len(dataset.headers) == 3 and int((dataset.lengths - 1).sum()) == 150
    cut = [bool(note.get("cut")) for note in dataset.notes]
    assert 0 < sum(cut) <= 9
    for episode in np.flatnonzero(cut):
        assert dataset.read(int(episode), "truncations")[-1]
        assert not dataset.read(int(episode), "terminals").any()
    (returns,) = round_returns(dataset)
    assert len(returns.returns) == len(dataset) - sum(cut) and returns.steps == 150


@pytest.mark.parametrize(("name", "workers"), [("by_count", 1), ("Remembers", 1), ("Remembers", 2)])
def test_a_policy_of_ones_own_is_given_observations(record: Record, name: str, workers: int):
    dataset = record(policy=f"counting_env:{name}", num_workers=workers)
    for episode in range(len(dataset)):
        actions = dataset.read(episode, "actions")[:-1]
        assert actions.tolist() == [step % counting_env.ACTIONS for step in range(len(actions))]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"env": ""}, "--env is not given"),
        ({"env": "Counting-v9"}, "--env Counting-v9 cannot be opened: .*module:ID"),
        ({"env": "no_such_module:A-v0"}, "cannot be opened .*No module named"),
        ({"env": "CartPole-v1", "env_kwargs": ("a=1",)}, "unexpected keyword .*see --env-kwargs"),
        ({"env": "CartPole-v1", "pixels": "observation"}, "--pixels render draws it"),
        ({"policy": "runs/none"}, "--policy runs/none is neither random, sticky-random, module:c"),
        ({"policy": "counting_env:none"}, "cannot be imported .*no attribute 'none'"),
        ({"policy": "counting_env:SIDE"}, "is a int, not a function or a class"),
        ({"policy": "math:sqrt"}, "--policy math:sqrt failed"),
        ({"policy": "leaves:act"}, "--policy leaves:act cannot be imported .*no display"),
        ({"policy": "counting_env:leaves"}, "--policy counting_env:leaves failed .*enough"),
        ({"frame_skip": 2, "vectorization_mode": "sync"}, "--frame-skip is for environments that"),
    ],
)
def test_what_cannot_be_recorded_is_said_in_one_line(
    record: Record,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    message: str,
):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "leaves.py").write_text("import sys\nsys.exit('no display')\n")
    with pytest.raises(ValueError, match=message) as refused:
        record(**changes)
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.rglob("build.json"))  # a recording that never was
    assert not list(tmp_path.rglob("*.h5"))
    assert len(record()) == 12  # and what was begun is not in the way


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"episodes": 3, "steps": 4}, "--episodes and --steps both say how much to record"),
        ({"max_pool": True}, "--max-pool needs the last two frames of a step, and --frame-skip"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(values: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        GymConfig(**values)


def test_a_run_goes_on_with_its_own_environment(record: Record):
    record(frame_skip=2)
    assert len(record(env="", resolution=64, seed=1)) == 24  # no view was given
    assert len(record(env="", frame_skip=2, seed=2)) == 36
    with pytest.raises(ValueError, match="holds shards with env frame_skip 2, but now it is 3"):
        record(env="", frame_skip=3, seed=3)
    with pytest.raises(ValueError, match="holds shards with env frame_skip 2, but now it is 1"):
        record(seed=3)
    with pytest.raises(ValueError, match=r"with env id .*, but now it is CartPole-v1"):
        record(env="CartPole-v1", resolution=16, seed=3)
    assert len(record(restart=True)) == 12


def test_shards_of_another_source_are_not_gone_on_with(record: Record, tmp_path: Path):
    build_info = {"description": {"source": "arrays"}, "shards": 1, "command": "x", "seconds": 0.0}
    (tmp_path / "run" / "shards").mkdir(parents=True)
    (tmp_path / "run" / "shards" / "build.json").write_text(json.dumps(build_info))
    with pytest.raises(ValueError, match="holds shards of 'arrays', not of gym"):
        record(env="")
    with pytest.raises(ValueError, match="holds shards with source arrays, but now it is gym"):
        record()


@pytest.mark.parametrize("mode", ["sync", "async", "vector_entry_point"])
def test_environments_that_gymnasium_vectorizes(record: Record, mode: str):
    env = "CartPole-v1" if mode == "vector_entry_point" else ENV
    dataset = record(env=env, vectorization_mode=mode, episodes=10)
    assert len(dataset) == 10
    own_seeds = mode != "vector_entry_point"
    assert all((note["seed"] is not None) == own_seeds for note in dataset.notes)
    if own_seeds:
        alone = record("alone", episodes=10)
        assert np.array_equal(
            dataset.read_rows("actions", 0, dataset.num_frames),
            alone.read_rows("actions", 0, alone.num_frames),
        )


# -- rounds by a controller that changes -----------------------------------------------------


@dataclass(frozen=True)
class Controller:
    """Stands for a run's controller: another fingerprint is another policy."""

    fingerprint: str
    fails: bool = False
    name: str = "runs/a"

    def open(self, envs: EnvGroup) -> RecordingPolicy:
        return _Fails(envs.actions) if self.fails else RandomPolicy(envs.actions)


class _Fails(RandomPolicy):
    def reset(self, results: Any, seeds: Any) -> None:
        raise OSError("interrupted")


def grow(folder: Path, policy: Controller, number: int | None = None, num_shards: int = 2) -> Plan:
    wanted = Round(policy.name, policy.fingerprint, 0, 3, 10 * num_shards, command="again")
    plan = plan_round(folder, read_rounds(folder), wanted, number)
    source = GymEpisodes.open(EnvSpec(ENV, image_size=16), policy, plan, 3)
    for index in range(plan.first_shard, plan.num_shards) if plan.replaced else ():
        (folder / f"shard-{index:05d}.h5").unlink(missing_ok=True)
    build(source, folder, "again")
    return plan


def test_another_controller_is_another_round(tmp_path: Path):
    assert grow(tmp_path, Controller("1")).active == 0
    assert grow(tmp_path, Controller("1")).active == 0
    assert grow(tmp_path, Controller("2")).active == 1
    assert grow(tmp_path, Controller("2"), number=2).active == 2  # it has not changed, and yet
    assert len(EpisodeDataset(tmp_path)) == 60


def test_a_round_that_a_controller_began_is_begun_anew_by_the_next(tmp_path: Path):
    grow(tmp_path, Controller("1"))
    with pytest.raises(OSError):
        grow(tmp_path, Controller("2", fails=True))
    plan = grow(tmp_path, Controller("3"))  # nothing was recorded: there is no round to finish
    assert (plan.active, plan.replaced, len(plan.rounds)) == (1, False, 2)
    (tmp_path / "shard-00003.h5").unlink()
    plan = grow(tmp_path, Controller("4"))
    assert (plan.active, plan.replaced) == (1, True)
    assert [each.fingerprint for each in read_rounds(tmp_path)] == ["1", "4"]
    assert len(EpisodeDataset(tmp_path)) == 40
    policies = {json.dumps(note, sort_keys=True) for note in EpisodeDataset(tmp_path).notes}
    assert len(policies) == 40


def test_a_callable_choice_can_be_pickled_and_named():
    choice = CallableChoice("counting_env:by_count")
    assert re.search("by_count", choice.name)


def test_a_size_says_how_much_is_recorded_where_the_command_does_not(tmp_path: Path):
    for recipe in ("pusht", "keypoints", "dreamer"):
        config = presets.apply(GymConfig(tmp_path, env=ENV), "preprocess_gym", [recipe, "debug"])
        assert config.default_episodes == 6
        assert replace(config, steps=9).steps == 9  # and a command may still count steps
    config = replace(GymConfig(tmp_path, env=ENV, resolution=16, num_workers=1), default_episodes=4)
    preprocess.gym(config)
    assert len(EpisodeDataset(tmp_path / "shards")) == 4


def test_the_next_round_is_the_first_that_lacks_a_shard(record: Record, tmp_path: Path):
    folder = tmp_path / "run" / "shards"
    assert next_round(folder) == 0
    record(steps=30)
    record(steps=30, seed=1)
    assert next_round(folder) == 2
    (folder / "shard-00001.h5").unlink()
    assert next_round(folder) == 1
