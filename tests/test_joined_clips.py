"""Clips that run on into the next episode, and the methods that ask for them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_clips import ragged

import train_dynamics
from data.clips import Clips
from data.joined_clips import JoinedClips
from models.dynamics.llama import LlamaDynamics
from models.dynamics.rssm import Rssm, RssmConfig
from pipeline import presets
from pipeline.batches.clip_batches import ClipBatches


@pytest.mark.parametrize("memory_limit", [0, 2**30])
def test_clips_run_on_into_the_next_episode_of_their_split(tmp_path: Path, memory_limit: int):
    dataset = ragged(tmp_path, (5, 21, 3, 34, 1))
    clips = JoinedClips(dataset, "train", clip_length=8, memory_limit=memory_limit)
    assert len(clips) == 64 - 8 + 1
    batch = clips.batch(np.arange(len(clips)))
    rows = clips.rows(np.arange(len(clips)))
    assert np.array_equal(rows, np.arange(57)[:, None] + np.arange(8))
    assert np.array_equal(batch.actions[..., 0].numpy(), rows)
    assert (batch.frames == torch.from_numpy(rows)[:, :, None, None, None]).all()
    first = clips.column("is_first", rows)
    assert first is not None and np.array_equal(first.numpy(), np.isin(rows, [0, 5, 26, 29, 63]))
    with pytest.raises(IndexError, match="within 0 to 56"):
        clips.batch(np.array([57]))


def test_episodes_of_other_splits_are_not_run_into(tmp_path: Path):
    dataset = ragged(tmp_path, (5, 21, 3, 34, 1))
    dataset.splits[1] = 1
    clips = JoinedClips(dataset, "train", clip_length=7)
    rows = clips.rows(np.arange(len(clips)))
    assert not np.isin(rows, np.arange(5, 26)).any() and rows[0].tolist() == [0, 1, 2, 3, 4, 26, 27]
    with pytest.raises(ValueError, match="have 43 frames together, .* 50; lower --flag"):
        JoinedClips(dataset, "train", 50, flag="--flag")


def test_only_what_is_told_of_first_frames_joins_and_only_short_episodes(tmp_path: Path):
    dataset = ragged(tmp_path, (5, 21, 3, 34, 1))
    small = RssmConfig(32, 4, 4, 16, 4, 24, channels=8, patch_size=4, clip_length=6)
    rssm = Rssm(small, (8, 8), dataset.actions)
    made = train_dynamics.training_clips(rssm, dataset)
    assert isinstance(made, JoinedClips)
    batch = ClipBatches(made, rssm.needs).batch(np.arange(4))
    assert batch.extra["is_first"].shape == (4, 6) and batch.extra["is_first"][0, 5]
    losses = rssm.loss(batch)
    assert all(torch.isfinite(value) for value in losses.values())
    (tmp_path / "long").mkdir()
    long = ragged(tmp_path / "long", (8, 9, 10, 8))
    plain = train_dynamics.training_clips(rssm, long)
    assert type(plain) is Clips
    assert "is_first" not in ClipBatches(plain, rssm.needs).batch(np.arange(4)).extra
    assert "is_first" not in LlamaDynamics.needs


def test_what_an_rssm_sees_of_an_episode_does_not_depend_on_the_one_before(tmp_path: Path):
    dataset = ragged(tmp_path, (6, 21, 3, 34, 1))
    config = RssmConfig(32, 4, 4, 16, 4, 24, channels=8, patch_size=4, clip_length=12)
    model = Rssm(config, (8, 8), dataset.actions)
    batch = ClipBatches(JoinedClips(dataset, "train", 12), model.needs).batch(np.array([0]))
    assert batch.frames is not None and batch.actions is not None

    def features(frames: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(0)
        embeds = torch.randn(1, 12, 24)
        embeds[:, :6] += frames
        return model.cell(embeds, actions, batch.extra["is_first"]).features[:, 6:]

    one = features(torch.zeros(1, 6, 24), batch.actions)
    other = batch.actions.clone()
    other[:, :6] = -other[:, :6]
    assert torch.equal(one, features(torch.ones(1, 6, 24), other))


def test_a_recording_of_short_episodes_trains_a_world(tmp_path: Path):
    from data.toy import write_toy_shards

    write_toy_shards(tmp_path / "shards", episodes=12, length=7)
    config = presets.apply(train_dynamics.Config(), "dynamics", ["dreamer", "debug"])
    model = replace(config.model, clip_length=10, context_frames=2)  # type: ignore[type-var]
    train = replace(config.train, steps=2, eval_every=2)
    train_dynamics.main(replace(config, run=tmp_path, model=model, train=train))
    assert (tmp_path / "dynamics" / "best.pt").exists()
