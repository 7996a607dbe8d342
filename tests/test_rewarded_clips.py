"""Batches in which rewarded clips are not rare."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from data.clips import Clips
from data.shards.build_info import shard_name
from data.shards.episode_dataset import EpisodeDataset
from data.shards.write_shard import write_shard
from data.toy import ToyEpisodes, write_toy_shards
from pipeline.batches import sample
from pipeline.batches.clip_batches import ClipBatches
from pipeline.batches.rewarded_clips import RewardedClips


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> ClipBatches:
    folder: Path = write_toy_shards(tmp_path_factory.mktemp("toy") / "shards", 30, 20)
    needs = frozenset({"actions", "rewards", "states"})
    return ClipBatches(Clips(EpisodeDataset(folder), "train", 3), needs)


def test_half_of_a_batch_has_higher_rewards_and_the_rest_is_as_asked(clips: ClipBatches) -> None:
    rewarded, indices = RewardedClips(clips), np.arange(len(clips))
    assert len(rewarded) == len(clips)
    plain, mixed = clips.batch(indices), rewarded.batch(indices)
    assert plain.rewards is not None and mixed.rewards is not None
    assert torch.equal(mixed.rewards[::2], plain.rewards[::2])
    share = plain.rewards[:, 0].quantile(0.9)
    before = (plain.rewards[1::2, 0] > share).float().mean()
    after = (mixed.rewards[1::2, 0] > share).float().mean()
    assert before < 0.2 and after > 2 * before
    assert torch.equal(mixed.extra["states"][::2], plain.extra["states"][::2])


def test_a_batch_is_a_function_of_its_indices(clips: ClipBatches) -> None:
    rewarded, indices = RewardedClips(clips), np.arange(40)
    one, two = rewarded.batch(indices), RewardedClips(clips).batch(indices)
    assert one.rewards is not None and two.rewards is not None
    assert torch.equal(one.rewards, two.rewards)
    other = rewarded.batch(indices + 1)
    assert other.rewards is not None and not torch.equal(one.rewards[1::2], other.rewards[1::2])
    assert indices.tolist() == list(range(40))


def test_a_reward_on_the_last_frame_of_an_episode_is_drawn(tmp_path: Path) -> None:
    source = ToyEpisodes(20, 30, 16)
    episodes = [source.episode(number) for number in range(20)]
    for episode in episodes:
        assert episode.rewards is not None
        episode.rewards[:] = 0
        episode.rewards[-1] = 1
    write_shard(tmp_path / shard_name(0), episodes, source.description())
    needs = frozenset({"actions", "rewards"})
    sparse = ClipBatches(Clips(EpisodeDataset(tmp_path), "train", 6), needs)
    rewarded = RewardedClips(sparse)
    drawn = rewarded.batch(np.arange(len(sparse))).rewards
    assert drawn is not None and (drawn[1::2, -1] == 1).float().mean() > 0.9
    best = sparse.batch(rewarded.highest(5)).rewards
    assert best is not None and bool((best[:, -1] == 1).all())


def test_a_sample_is_of_bounded_size_and_holds_the_highest_rewards(
    clips: ClipBatches, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample, "SAMPLE_BYTES", 0)
    made = sample.sample_of(RewardedClips(clips), seed=0)
    assert made.rewards is not None and len(made) <= 1000 + 11
    every = clips.batch(np.arange(len(clips))).rewards
    assert every is not None and made.rewards.max() == every[:, [0, -1]].max()
