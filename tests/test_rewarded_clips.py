"""Batches in which rewarded clips are not rare."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from data.clips import Clips
from data.shards.episode_dataset import EpisodeDataset
from data.toy import write_toy_shards
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
