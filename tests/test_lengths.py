"""Short episodes: stage 1 says what they mean, and holds out those that are long enough."""

import numpy as np
import pytest

from data.arrays.array_source import ArraySource
from data.checks.lengths import describe_lengths
from data.shards.build_shards import build
from data.shards.episode_dataset import EpisodeDataset
from data.shards.shard_header import SPLITS
from data.shards.splits import LONG_ENOUGH, split_sources


@pytest.mark.parametrize("lengths", [[30] * 40, [3] * 40, None])
def test_splits_of_equally_useful_sources_do_not_depend_on_their_lengths(lengths):
    assert np.array_equal(split_sources(40, 7, lengths, 24), split_sources(40, 7))
    assert np.bincount(split_sources(40, 7)).tolist() == [32, 4, 4]


@pytest.mark.parametrize("num_long", range(13))
@pytest.mark.parametrize("count", [12, 40])
def test_sources_that_are_long_enough_are_held_out_and_one_stays_for_training(count, num_long):
    for seed in range(5):
        lengths = np.random.default_rng(seed).permutation(
            [30] * num_long + [3] * (count - num_long)
        )
        splits = split_sources(count, seed, lengths.tolist(), 24)
        held_out = max(1, count // 10)
        assert np.bincount(splits).tolist() == [count - 2 * held_out, held_out, held_out]
        long = [int((lengths[splits == split] >= 24).sum()) for split in range(3)]
        assert sum(long) == num_long
        assert long[0] >= min(1, num_long)
        assert long[1] >= min(1, num_long // 2) and long[2] >= min(1, num_long // 3)


def write_episodes(folder, lengths) -> ArraySource:
    for number, length in enumerate(lengths):
        frames = np.full((length, 8, 8, 3), number * 20, np.uint8)
        np.savez(folder / f"{number:02d}.npz", frames=frames, actions=np.arange(length) % 3)
    return ArraySource(str(folder))


def test_shards_hold_out_episodes_that_are_long_enough(tmp_path):
    for seed in range(4):
        source = write_episodes(tmp_path, [3, 5, 1, 40, 2, 40, 3, 30])
        build(source, tmp_path / str(seed), "-", seed)
        dataset = EpisodeDataset(tmp_path / str(seed))
        for split in SPLITS:
            assert max(dataset.length(e) for e in dataset.episodes(split)) >= LONG_ENOUGH
        assert describe_lengths(dataset).startswith(
            "5 of 8 episodes are shorter than the 24 frames"
        )


def test_a_split_without_a_long_episode_is_warned_of(tmp_path):
    build(write_episodes(tmp_path, [12] * 5), tmp_path / "run", "-")
    warning = describe_lengths(EpisodeDataset(tmp_path / "run"))
    assert warning.startswith("warning: 5 of 5 episodes are shorter than the 24 frames")
    assert (
        "12 in train, 12 in validation, 12 in test" in warning and "--model.clip-length" in warning
    )


def test_long_episodes_are_not_spoken_of(tmp_path):
    build(write_episodes(tmp_path, [LONG_ENOUGH] * 3), tmp_path / "run", "-")
    assert describe_lengths(EpisodeDataset(tmp_path / "run")) == ""


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_episodes_for_a_validation_are_warned_of(tmp_path, count):
    build(write_episodes(tmp_path, [40] * count), tmp_path / "run", "-")
    warning = describe_lengths(EpisodeDataset(tmp_path / "run"))
    assert warning.startswith("warning: no episode is for validation, which training needs")
