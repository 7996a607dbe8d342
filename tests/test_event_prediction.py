"""Rewards and ends that worlds predict at their very step."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.actions import ActionSpec
from data.shards.build_info import shard_name
from data.shards.episode_dataset import EpisodeDataset
from data.shards.episodes import Episode
from data.shards.write_shard import write_shard
from evaluation.measures.event_prediction import event_prediction

ACTIONS = ActionSpec("discrete", ("none", "earn", "end"))


def write(folder: Path, rewarded: int = 3, episodes: int = 8) -> EpisodeDataset:
    """Episodes of 30 frames whose actions say what follows: a reward of 2, or the end."""
    made, rng = [], np.random.default_rng(0)
    for source in range(episodes):
        actions = np.zeros(30, np.int64)
        actions[rng.choice(28, rewarded, replace=False)] = 1
        actions[28:] = 2 if source % 2 == 0 else 0
        rewards = np.zeros(30, np.float32)
        rewards[1:] = 2.0 * (actions[:-1] == 1)
        terminals = np.zeros(30, bool)
        terminals[-1] = actions[28] == 2
        frames = np.zeros((30, 8, 8, 3), np.uint8)
        made.append(
            Episode(frames, actions, source=source, split=2, rewards=rewards, terminals=terminals)
        )
    description = {"image_size": [8, 8], "actions": ACTIONS.as_dict(), "source": "test"}
    write_shard(folder / shard_name(0), made, description)
    return EpisodeDataset(folder)


@dataclass
class Arrived:
    reward: Tensor
    continues: Tensor


class Reads:
    """Reads from the action what follows."""

    context = 2

    def __init__(self, earns: float = 2.0, late: bool = False) -> None:
        self.earns, self.late = earns, late

    def reset(self, frames: Tensor, actions: Tensor) -> Arrived:
        self.before = torch.zeros(len(frames), dtype=torch.int64)
        return Arrived(torch.zeros(len(frames)), torch.ones(len(frames)))

    def step(self, state: Arrived, action: Tensor) -> Arrived:
        seen = self.before if self.late else action
        self.before = action
        return Arrived(self.earns * (seen == 1), 1 - 0.5 * (seen == 2).float())


def test_who_knows_the_events_predicts_all_of_them(tmp_path: Path):
    found = event_prediction(Reads(), write(tmp_path), steps=6, num_rollouts=24)
    assert found["reward_f1"] == found["reward_precision"] == found["reward_recall"] == 1
    assert found["continue_auc"] == 1 and found["ends"] >= 3 and found["rewards"] > 6
    assert found["reward_f1_low"] == 1 and found["continue_auc_low"] == 1
    assert 0 < found["always_f1"] < 0.6
    json.dumps(found, allow_nan=False)


def test_a_reward_counts_at_its_very_step_and_above_half_its_size(tmp_path: Path):
    dataset = write(tmp_path)
    late = event_prediction(Reads(late=True), dataset, steps=6, num_rollouts=24)
    assert late["reward_f1"] < 0.5
    small = event_prediction(Reads(earns=0.9), dataset, steps=6, num_rollouts=24)
    assert small["reward_f1"] == 0 and small["reward_precision"] is None
    over: Any = event_prediction(Reads(earns=-1.1), dataset, steps=6, num_rollouts=24)
    assert over["reward_f1"] == 1  # its size counts; costs are events, too


def test_half_of_the_rollouts_come_to_an_event(tmp_path: Path):
    dataset = write(tmp_path, rewarded=1, episodes=40)

    class Counts(Reads):
        come = 0

        def reset(self, frames: Tensor, actions: Tensor) -> Arrived:
            self.events = torch.zeros(len(frames), dtype=torch.bool)
            return super().reset(frames, actions)

        def step(self, state: Arrived, action: Tensor) -> Arrived:
            self.events |= action > 0
            Counts.come = int(self.events.sum())
            return super().step(state, action)

    found = event_prediction(Counts(), dataset, steps=4, num_rollouts=40)
    assert found["n"] == 40 and 18 <= Counts.come <= 24


def test_where_most_steps_are_rewarded_rewards_are_no_events(tmp_path: Path):
    found = event_prediction(Reads(), write(tmp_path, rewarded=20), steps=6, num_rollouts=24)
    assert found["rewards"] == 0 and found["reward_f1"] is None
    assert found["continue_auc"] == 1
