"""Clips are consecutive frames of the episodes of one split, from memory or from disk."""

import multiprocessing
import os
import pickle

import numpy as np
import pytest
import torch

from data.actions import ActionSpec
from data.clips import Clips
from data.shards.build_info import shard_name
from data.shards.episode_dataset import EpisodeDataset
from data.shards.episodes import Episode
from data.shards.write_shard import write_shard
from data.toy import POINTER, write_toy_shards

DESCRIPTION = {"image_size": [8, 8], "actions": POINTER.as_dict(), "source": "test"}


def ragged(folder, lengths=(5, 21, 3, 34, 1), split=0):
    """Write episodes whose frames and actions hold the number of their row."""
    rows = iter(range(1000))
    for shard, part in enumerate((lengths[:2], lengths[2:])):
        episodes = []
        for length in part:
            numbers = np.array([next(rows) for _ in range(length)])
            frames = np.zeros((length, 8, 8, 3), np.uint8) + numbers[:, None, None, None]
            actions = np.stack([numbers, numbers], 1).astype(np.float32)
            episodes.append(Episode(frames.astype(np.uint8), actions, split=split))
        write_shard(folder / shard_name(shard), episodes, DESCRIPTION)
    return EpisodeDataset(folder)


@pytest.mark.parametrize("memory_limit", [0, 2**30])
def test_clips_start_at_every_frame_and_none_crosses_an_episode(tmp_path, memory_limit):
    clips = Clips(ragged(tmp_path), "train", clip_length=4, memory_limit=memory_limit)
    assert len(clips) == 2 + 18 + 31
    batch = clips.batch(np.arange(len(clips)))
    assert batch.frames.shape == (51, 4, 3, 8, 8)
    as_stored = batch.frames if memory_limit else batch.frames.permute(0, 1, 3, 4, 2)
    assert as_stored.is_contiguous()
    numbers = batch.actions[..., 0]
    assert (numbers.diff(dim=1) == 1).all() and len(numbers[:, 0].unique()) == 51
    assert (batch.frames == numbers[:, :, None, None, None]).all()
    assert np.array_equal(clips.rows(np.arange(51)), numbers.long().numpy())
    starts = np.cumsum([0, 5, 21, 3, 34, 1])
    for index in range(51):
        episode = clips.episode_of(index)
        assert starts[episode] <= numbers[index, 0] and numbers[index, -1] < starts[episode + 1]


def test_memory_and_disk_hold_the_same(tmp_path):
    dataset = EpisodeDataset(write_toy_shards(tmp_path))
    cached = Clips(dataset, "train", clip_length=5)
    streamed = Clips(dataset, "train", clip_length=5, memory_limit=0)
    indices = np.random.default_rng(0).permutation(len(cached))[:50]
    first, second = cached.batch(indices), streamed.batch(indices)
    for name in ("frames", "actions", "rewards", "terminals", "states"):
        assert torch.equal(getattr(first, name), getattr(second, name))
    assert torch.equal(cached[int(indices[0])].frames, first.frames[0])


def test_frames_are_cached_on_a_device_if_they_fit(tmp_path):
    clips = Clips(EpisodeDataset(write_toy_shards(tmp_path)), "train", clip_length=5)
    before = clips.batch(np.arange(7)).frames
    elsewhere = torch.device("meta")  # a device of shapes without values
    clips.cache_on_device(elsewhere, 2**30)
    assert clips.batch(np.arange(7)).frames.device == elsewhere
    clips.cache_on_device(elsewhere, 1000)
    assert torch.equal(clips.batch(np.arange(7)).frames, before)


@pytest.mark.parametrize("discrete", [False, True])
def test_a_clip_has_the_documented_shapes(tmp_path, discrete):
    clips = Clips(EpisodeDataset(write_toy_shards(tmp_path, discrete=discrete)), "validation", 6)
    assert len(clips) == 24 - 6 + 1
    clip = clips[3]
    assert clip.frames.shape == (6, 3, 32, 32) and clip.frames.dtype == torch.uint8
    assert clip.actions.shape == ((6,) if discrete else (6, 2))
    assert clip.actions.dtype == (torch.int64 if discrete else torch.float32)
    assert clip.rewards is not None and clip.rewards.dtype == torch.float32
    assert clip.terminals is not None and clip.terminals.dtype == torch.bool
    assert clip.states is not None and clip.states.shape == (6, 5)
    batch = clips.batch(np.array([0, 18])).to("cpu")
    assert batch.frames.shape == (2, 6, 3, 32, 32)
    with pytest.raises(IndexError):
        clips.batch(np.array([19]))


@pytest.mark.parametrize("memory_limit", [0, 2**30])
def test_clips_without_actions_have_actions_of_no_numbers(tmp_path, memory_limit):
    spec = ActionSpec("none", ())
    frames = np.random.default_rng(0).integers(0, 256, (9, 8, 8, 3), dtype=np.uint8)
    description = DESCRIPTION | {"actions": spec.as_dict()}
    write_shard(tmp_path / shard_name(0), [Episode(frames, None)], description)
    clips = Clips(EpisodeDataset(tmp_path), "train", clip_length=4, memory_limit=memory_limit)
    assert clips.actions == spec and len(clips) == 6
    batch = clips.batch(np.arange(6))
    assert torch.equal(batch.frames[2, 1], torch.from_numpy(frames[3]).permute(2, 0, 1))
    assert batch.actions.shape == (6, 4, 0) and batch.actions.dtype == torch.float32
    assert clips[0].actions.shape == (4, 0)
    assert torch.equal(spec.normalize(batch.actions), batch.actions)
    assert torch.equal(spec.denormalize(batch.actions), batch.actions)


def test_splits_share_no_source(tmp_path):
    dataset = EpisodeDataset(write_toy_shards(tmp_path))
    sources = [
        {int(dataset.sources[e]) for e in dataset.episodes(split)}
        for split in ("train", "validation", "test")
    ]
    assert all(sources) and len(set.union(*sources)) == sum(map(len, sources)) == 12


def test_an_empty_split_and_too_long_a_clip_are_errors(tmp_path):
    dataset = ragged(tmp_path)
    with pytest.raises(ValueError, match="no validation episode .* record at least 3 sources"):
        Clips(dataset, "validation", 4)
    with pytest.raises(ValueError, match="has the 99 frames of a clip .the longest has 34"):
        Clips(dataset, "train", 99)


def read_in_child(clips: Clips) -> tuple[int, torch.Tensor]:
    return os.getpid(), clips.batch(np.arange(40)).frames.sum(dim=(1, 2, 3, 4))


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("memory_limit", [0, 2**30])
def test_clips_can_be_sent_to_other_processes(tmp_path, method, memory_limit):
    clips = Clips(ragged(tmp_path), "train", clip_length=4, memory_limit=memory_limit)
    _, expected = read_in_child(clips)  # the parent's files are open now
    with multiprocessing.get_context(method).Pool(1) as pool:
        process, seen = pool.apply(read_in_child, (clips,))
    assert process != os.getpid() and torch.equal(seen, expected)


def test_a_pickle_holds_no_frames(tmp_path):
    clips = Clips(ragged(tmp_path), "train", clip_length=4)
    before = clips.batch(np.arange(9)).frames
    packed = pickle.dumps(clips)
    assert len(packed) < 8 * 8 * 3 * 64
    assert torch.equal(pickle.loads(packed).batch(np.arange(9)).frames, before)
