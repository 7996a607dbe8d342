"""Actions that are shifted against the frames are noticed; where it is unclear, nothing is said."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import preprocess
from data.actions import ActionSpec
from data.checks.alignment_check import alignment_scores, alignment_warning, describe_scores
from data.pusht.simulator import PushT
from data.shards.build_info import shard_name
from data.shards.episode_dataset import EpisodeDataset
from data.shards.episodes import Episode
from data.shards.write_shard import write_shard
from data.toy import KEYS, MOVE_VECTORS, MOVES

VELOCITY = ActionSpec("continuous", ("right", "down"), (-4.0, -4.0), (4.0, 4.0))
KEY_STEPS = np.stack([np.tile([-4, -2, 0, 2, 4], 3), np.repeat([0, -4, 4], 5)], 1)
STEPS = {MOVES: MOVE_VECTORS / 10, KEYS: KEY_STEPS}


def square(place: np.ndarray) -> np.ndarray:
    frame = np.full((32, 32, 3), (40, 60, 90), np.uint8)
    x, y = place.astype(int)
    frame[max(0, y - 3) : y + 3, max(0, x - 3) : x + 3] = (230, 120, 30)
    return frame


def write(
    folder: Path, spec: ActionSpec, shift: int = 0, count: int = 8, seed: int = 0, policy=None
):
    """Write episodes of a square that moves by its actions, stored `shift` rows too late."""
    random, episodes = np.random.default_rng(seed), []
    for _ in range(count):
        place, speed, frames, actions = random.uniform(8, 24, 2), np.zeros(2), [], []
        for _ in range(26):
            frames.append(square(place))
            action = policy(place, speed, random) if policy else spec.sample(1, random)[0]
            actions.append(action)
            if policy:  # the action is a force
                place, speed = place + speed, speed + action
            else:
                place = place + (STEPS[spec][action] if spec in STEPS else action)
            place = np.clip(place, 3, 29)
        stored = np.roll(np.array(actions), shift, axis=0)[1:-1]
        episodes.append(Episode(frames=np.stack(frames)[1:-1], actions=stored))
    if spec.kind == "continuous":
        for episode in episodes:
            episode.actions = episode.actions.astype(np.float32)
    folder.mkdir(exist_ok=True)
    description = {"image_size": [32, 32], "actions": spec.as_dict()}
    write_shard(folder / shard_name(0), episodes, description)
    return alignment_scores(EpisodeDataset(folder))


@pytest.mark.parametrize("spec", [MOVES, KEYS, VELOCITY], ids=["codes", "factors", "numbers"])
def test_shifted_actions_are_warned_of_and_aligned_ones_are_not(tmp_path, spec):
    scores = write(tmp_path / "aligned", spec)
    assert scores is not None and scores[0] > 0.3 and max(scores[-1], scores[1]) < 0.1
    assert alignment_warning(scores) == ""
    assert f"{scores[0]:.0%} of actions[t]" in describe_scores(scores)
    late = alignment_warning(write(tmp_path / "late", spec, 1))
    assert late.startswith("warning: the change")
    assert "--alignment previous" in late
    early = alignment_warning(write(tmp_path / "early", spec, -1))
    assert "a step too early, or to act a step late" in early


def test_a_policy_that_reacts_in_a_world_of_forces_is_not_warned_of(tmp_path):
    for seed, noise in enumerate((0.0, 0.1, 1.0)):

        def policy(place, speed, random, noise=noise):
            return -0.1 * (place - 16) - 0.5 * speed + random.normal(0, noise, 2)

        scores = write(tmp_path / str(seed), VELOCITY, 0, 20, seed, policy)
        assert alignment_warning(scores) == "", scores


def test_actions_without_an_effect_say_nothing(tmp_path):
    random = np.random.default_rng(0)
    frames = random.integers(0, 256, (200, 16, 16, 3), dtype=np.uint8)
    for name, actions in (("random", random.integers(0, 5, 200)), ("one", np.zeros(200, np.int64))):
        (tmp_path / name).mkdir()
        description = {"image_size": [16, 16], "actions": MOVES.as_dict()}
        episode = Episode(frames=frames, actions=actions)
        write_shard(tmp_path / name / shard_name(0), [episode], description)
        scores = alignment_scores(EpisodeDataset(tmp_path / name))
        assert alignment_warning(scores) == ""
        assert "too little" in describe_scores(scores)


def test_too_few_steps_and_no_actions_say_nothing(tmp_path):
    assert write(tmp_path / "few", MOVES, count=2) is None
    description = {"image_size": [8, 8], "actions": ActionSpec("none", ()).as_dict()}
    (tmp_path / "none").mkdir()
    episode = Episode(frames=np.zeros((200, 8, 8, 3), np.uint8), actions=None)
    write_shard(tmp_path / "none" / shard_name(0), [episode], description)
    assert alignment_scores(EpisodeDataset(tmp_path / "none")) is None


def test_shards_of_one_row_an_episode_are_measured_without_an_error(tmp_path):
    episodes = [Episode(frames=np.zeros((n, 2, 3, 3), np.uint8), actions=np.zeros(n, np.int64))
                for n in (1, 2, 3, 4, 300)]  # fmt: skip
    description = {"image_size": [2, 3], "actions": MOVES.as_dict()}
    write_shard(tmp_path / shard_name(0), episodes, description)
    assert alignment_warning(alignment_scores(EpisodeDataset(tmp_path))) == ""


def test_stage_1_warns_of_shifted_actions(tmp_path, capsys):
    for number in range(8):
        random = np.random.default_rng(number)
        place, frames, moves = random.uniform(8, 24, 2), [], random.integers(0, 5, 24)
        for move in moves:
            frames.append(square(place))
            place = np.clip(place + MOVE_VECTORS[move] / 10, 3, 29)
        np.savez(tmp_path / f"{number}.npz", frames=np.stack(frames), actions=np.roll(moves, 1))
    config = preprocess.ArraysConfig(tmp_path, tmp_path / "run", num_workers=1)
    preprocess.arrays(config)
    assert "warning: the change from frame t to t + 1" in capsys.readouterr().out
    preprocess.arrays(replace(config, run=tmp_path / "run 2", alignment="previous"))
    assert "warning" not in capsys.readouterr().out


def test_stage_1_warns_of_targets_that_are_shifted(tmp_path, capsys):
    random = np.random.default_rng(0)
    ends, states, actions = [], [], []
    for _ in range(5):
        simulator = PushT(16)
        simulator.reset(np.array([100, 100, 400, 400, 0]))
        for target in random.uniform(60, 300, (25, 2)):
            states.append(simulator.state)
            actions.append(target)
            simulator.step(target)
        ends.append(len(states))
    for name, shift, warned in (("right", 0, False), ("late", 1, True)):
        stored = np.roll(np.array(actions), shift, 0)
        path = tmp_path / f"{name}.npz"
        np.savez(path, state=np.array(states), action=stored, episode_ends=np.array(ends))
        config = preprocess.PushTConfig(tmp_path / name, str(path), resolution=16, num_workers=1)
        preprocess.pusht(config)
        assert ("seem to be shifted" in capsys.readouterr().out) == warned
