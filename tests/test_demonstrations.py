"""Which steps of a dataset are worth cloning, and what is said where none is."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from data.shards.build_info import shard_name
from data.shards.episode_dataset import EpisodeDataset
from data.shards.write_shard import write_shard
from data.toy import ToyEpisodes
from pipeline.batches.demonstrations import DemoSteps, demo_rows


def dataset(folder: Path, *rewards: list[float]) -> EpisodeDataset:
    """Training episodes with these rewards."""
    source = ToyEpisodes(len(rewards), len(rewards[0]), 16)
    episodes = [source.episode(number) for number in range(len(rewards))]
    for episode, values in zip(episodes, rewards, strict=True):
        episode.rewards = np.array(values, np.float32)
    write_shard(folder / shard_name(0), episodes, source.description())
    return EpisodeDataset(folder)


def test_steps_before_the_highest_reward_are_demonstrated(tmp_path):
    found = demo_rows(dataset(tmp_path, [0, 0.2, 0.9, 0.1], [0, 0.1, 0.2, 0.3]), "train", 0.7)
    assert [rows.tolist() for rows in found] == [[0, 1], []]


def test_an_episode_of_constant_reward_is_demonstrated_as_a_whole(tmp_path):
    found = demo_rows(dataset(tmp_path, [1, 1, 1, 1], [0, 0, 0, 0]), "train", 0.7)
    assert [rows.tolist() for rows in found] == [[0, 1, 2], []]


def test_an_episode_in_which_each_step_earns_the_same_is_demonstrated_as_a_whole(tmp_path):
    """As in CartPole: the reset earns nothing."""
    found = demo_rows(dataset(tmp_path, [0, 1, 1, 1], [0, 1, 1, 0]), "train", 0.7)
    assert [rows.tolist() for rows in found] == [[0, 1, 2], [4]]


def test_where_steps_cost_the_reset_is_not_the_best(tmp_path):
    """As in Pendulum, and in MountainCar, where each step costs 1."""
    made = dataset(tmp_path, [0, -3, -1, -2], [0, -1, -1, -1])
    assert [rows.tolist() for rows in demo_rows(made, "train", -1.0)] == [[0, 1], [4, 5, 6]]
    with pytest.raises(
        ValueError, match="the highest reward in the 2 .* is -1, .*--min-reward -1 clones 2"
    ):
        demo_rows(made, "train", 0.1)


def test_a_reward_that_no_episode_reaches_is_told_with_the_highest_there_is(tmp_path):
    made = dataset(tmp_path, [0, 0.2, 0.25, 0.1])
    with pytest.raises(ValueError, match=r"the 1 train episode of .* is 0.25, .*--min-reward 0.7"):
        demo_rows(made, "train", 0.7)
    with pytest.raises(ValueError, match=r"cloning begins at --flow-min-reward 0\.9; --flow-min"):
        demo_rows(made, "train", 0.9, "--flow-min-reward")


@pytest.mark.parametrize("highest", [-0.013875, -1234.6, 0.69996, 0.3, -3e-8, 0.0])
def test_the_advised_reward_clones_a_tenth_of_the_episodes(tmp_path, highest):
    """Rounded, it is still reached; and it is not that of the one best episode."""
    rewards = [[0, -5000, highest - 0.01 * number, -5000] for number in range(20)]
    made = dataset(tmp_path, *rewards)
    with pytest.raises(ValueError, match="cloning begins at --min-reward 1") as problem:
        demo_rows(made, "train", 1.0)
    found = re.search(r"; --min-reward (\S+) clones (\d+) of them", str(problem.value))
    assert found is not None
    cloned = [rows for rows in demo_rows(made, "train", float(found[1])) if len(rows)]
    assert 2 <= len(cloned) == int(found[2])


def test_the_advised_reward_is_of_episodes_that_lead_up_to_one(tmp_path):
    """An episode that begins with its highest reward shows nothing."""
    made = dataset(tmp_path, [0.6, 0.2, 0.3, 0.1], [0.1, 0.2, 0.3, 0.1])
    with pytest.raises(ValueError, match="is 0.6, .*--min-reward 0.3 clones 1 of them"):
        demo_rows(made, "train", 0.7)


def test_a_reward_that_is_highest_at_first_is_not_told_as_one_too_low(tmp_path):
    made = dataset(tmp_path, [1, 0.2, 0.25, 0.1], [1, 0, 0, 0])
    with pytest.raises(ValueError, match="highest in the first frame; record") as problem:
        demo_rows(made, "train", 0.1)
    assert "--min-reward" not in str(problem.value)


def test_chunks_of_actions_end_with_the_last_one_of_their_demonstration_repeated(tmp_path):
    made = dataset(tmp_path, [0, 0.2, 0.3, 0.9, 0.1], [0, 0.1, 0.2, 0.3, 0.8])
    latents = np.arange(2 * made.num_frames, dtype=np.float32).reshape(-1, 1, 2)
    demos = DemoSteps(made, "train", latents, 0.7, chunk_length=3)
    assert len(demos) == 3 + 4
    read, actions = demos.batch(np.array([0, 2, 5])).require("latents", "actions")
    assert read.shape == (3, 1, 1, 2) and actions.shape[:2] == (3, 3)
    known = made.actions.normalize(torch.from_numpy(made.read_rows("actions", 0, 10)))
    rows = torch.tensor([[0, 1, 2], [2, 2, 2], [7, 8, 8]])
    assert torch.equal(actions, known[rows])
    assert torch.equal(read[:, 0, 0, 0] / 2, rows[:, 0].float())
    alone = DemoSteps(made, "train", latents, 0.7).batch(np.array([5])).require("actions")[0]
    assert torch.equal(alone[:, 0], known[7:8]) and alone.shape[1] == 1
