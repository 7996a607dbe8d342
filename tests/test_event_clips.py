"""Batches in which rare rewards and true ends are not rare."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from test_clips import ragged

import train_dynamics
from data.clips import Clips
from data.joined_clips import JoinedClips
from data.shards.episode_dataset import EpisodeDataset
from pipeline.batches.clip_batches import ClipBatches
from pipeline.batches.event_clips import EventClips, events_of

LENGTHS = (30, 30, 30, 4, 3)
NEEDS = frozenset({"actions", "rewards", "continues"})


def with_events(
    folder: Path, rewarded: tuple[int, ...], ended: tuple[int, ...], usual: float = 0.0
) -> EpisodeDataset:
    """Episodes whose steps earn `usual`, but on some rows 1 more."""
    dataset = ragged(folder, LENGTHS)
    rewards = np.full(sum(LENGTHS), usual, np.float32)
    rewards[dataset.first_rows] = 0
    rewards[list(rewarded)] += 1
    terminals = np.zeros(len(rewards), bool)
    terminals[list(ended)] = True
    columns, read_rows = {"rewards": rewards, "terminals": terminals}, dataset.read_rows

    def read(field: str, start: int, stop: int, out: np.ndarray | None = None) -> np.ndarray:
        return (
            columns[field][start:stop] if field in columns else read_rows(field, start, stop, out)
        )

    dataset.read_rows, has = read, dataset.has
    dataset.has = lambda field: field in columns or has(field)
    return dataset


def test_a_share_of_a_batch_comes_to_events_and_the_rest_is_as_asked(tmp_path: Path) -> None:
    clips = ClipBatches(Clips(with_events(tmp_path, (45,), (29, 89)), "train", 5), NEEDS)
    indices = np.resize(np.arange(len(clips)), 2000)
    plain, mixed = clips.batch(indices), EventClips(clips, 0.5).batch(indices)
    assert plain.rewards is not None and mixed.rewards is not None
    assert plain.actions is not None and mixed.actions is not None
    assert mixed.continues is not None
    rewarded, ended = mixed.rewards[:, 1:].any(1), (mixed.continues[:, 1:] == 0).any(1)
    assert plain.rewards[:, 1:].any(1).float().mean() < 0.07
    assert 0.24 < rewarded.float().mean() < 0.36  # a quarter, and those that were asked for
    assert 0.24 < ended.float().mean() < 0.36
    asked = (mixed.actions == plain.actions).flatten(1).all(1)
    assert 0.45 < asked.float().mean() < 0.6
    assert bool((asked | rewarded | ended).all())


def test_what_most_steps_earn_is_no_event_and_neither_is_a_reset(tmp_path: Path) -> None:
    dataset = with_events(tmp_path, (45,), (), usual=-1)
    rare, ends = events_of(dataset)
    assert np.flatnonzero(rare).tolist() == [45] and not ends.any()


def test_rewards_that_are_not_rare_are_no_events(tmp_path: Path) -> None:
    varied = with_events(tmp_path, (), ())
    varied.read_rows("rewards", 0, 97)[:] = np.arange(97)
    clips = ClipBatches(Clips(varied, "train", 5), NEEDS)
    one, two = clips.batch(np.arange(40)), EventClips(clips, 1.0).batch(np.arange(40))
    assert one.rewards is not None and two.rewards is not None
    assert torch.equal(one.rewards, two.rewards)


def test_a_batch_is_a_function_of_its_indices_and_leaves_them_as_they_are(tmp_path: Path) -> None:
    clips = ClipBatches(JoinedClips(with_events(tmp_path, (45,), (29,)), "train", 5), NEEDS)
    indices = np.arange(40)
    one, two = (EventClips(clips, 0.5).batch(indices).rewards for _ in range(2))
    other = EventClips(clips, 0.5).batch(indices + 1).rewards
    assert one is not None and two is not None and other is not None
    assert torch.equal(one, two) and not torch.equal(one[1:], other[:-1])
    assert indices.tolist() == list(range(40))


def test_the_stage_draws_them_where_a_share_is_given(tmp_path: Path) -> None:
    clips = ClipBatches(Clips(with_events(tmp_path, (45,), ()), "train", 5), NEEDS)
    assert train_dynamics.with_events(clips, 0.0) is clips
    drawn = train_dynamics.with_events(clips, 1.0).batch(np.arange(20))
    assert drawn.rewards is not None and bool(drawn.rewards[:, 1:].any(1).all())
