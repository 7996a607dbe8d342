"""The toy world follows its actions and is deterministic."""

import numpy as np
import pytest

from data.shards.episode_dataset import EpisodeDataset
from data.toy import (
    KEYS,
    MOVES,
    POINTER,
    SPEED,
    WINDOW_SIZE,
    ToyEpisodes,
    ToyPushT,
    write_toy_shards,
)


def test_the_disc_runs_towards_the_pointer():
    world = ToyPushT(np.array([100.0, 100.0, 400.0, 400.0, 0.0]))
    world.step(np.array([100.0, 400.0]))
    assert world.state[:2].tolist() == [100.0, 100.0 + SPEED]
    assert world.state[2:4].tolist() == [400.0, 400.0]


def test_the_disc_pushes_the_square_and_reports_contact():
    world = ToyPushT(np.array([100.0, 256.0, 256.0, 256.0, 0.0]))
    for _ in range(3):
        world.step(np.array([200.0, 256.0]))
    assert world.contacts == 1
    assert world.state[2] > 256 and world.state[3] == 256


@pytest.mark.parametrize(
    ("kind", "spec"), [({}, POINTER), ({"discrete": True}, MOVES), ({"factored": True}, KEYS)]
)
def test_actions_lead_from_one_state_to_the_next(tmp_path, kind, spec):
    dataset = EpisodeDataset(write_toy_shards(tmp_path, **kind))
    assert dataset.actions == spec
    for episode in range(len(dataset)):
        states = dataset.read(episode, "states")
        actions = dataset.read(episode, "actions")
        world = ToyPushT(states[0], spec)
        for step in range(len(states) - 1):
            world.step(actions[step])
            assert np.allclose(world.state, states[step + 1], atol=0.1)


def test_a_code_of_factors_moves_by_each_of_them():
    world = ToyPushT(np.array([100.0, 200.0, 400.0, 400.0, 0.0]), KEYS)
    world.step(KEYS.ravel(np.array([3, 1])))
    assert KEYS.describe(int(KEYS.ravel(np.array([3, 1])))) == "across +1  up"
    assert world.state[:2].tolist() == [100.0 + SPEED / 2, 200.0 - SPEED]


def test_half_of_the_episodes_bring_the_square_nearer_and_some_are_terminal(tmp_path):
    dataset = EpisodeDataset(write_toy_shards(tmp_path))
    rewards = [dataset.read(e, "rewards") for e in range(12)]
    gains = [float(r[-1] - r[0]) for r in rewards]
    assert np.mean(gains[::2]) > 0.1 > np.mean(gains[1::2])
    terminals = dataset.read_rows("terminals", 0, dataset.num_frames)
    assert 0 < terminals.sum() < 12
    assert dataset.episodes("validation") and dataset.episodes("test")


def test_an_episode_depends_on_its_seed_and_number_alone():
    few, many = ToyEpisodes(episodes=3), ToyEpisodes(episodes=30, episodes_per_shard=4)
    assert np.array_equal(few.episode(2).frames, many.episode(2).frames)
    assert not np.array_equal(few.episode(2).frames, ToyEpisodes(seed=1).episode(2).frames)


def test_the_rendered_frame_shows_the_state():
    world = ToyPushT(np.array([64.0, 448.0, 256.0, 100.0, 0.0]))
    frame = world.render(64)
    blue = np.argwhere((frame == (65, 105, 225)).all(-1)).mean(0)
    assert np.allclose(blue * WINDOW_SIZE / 64, [448.0, 64.0], atol=6)
