"""Predicted rewards and ends of worlds whose worth is known."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from fake_worlds import DotClips, FakeClip
from torch import Tensor

from evaluation.measures.reward_prediction import reward_prediction

HORIZONS = (1, 4, 15)
NUM_CLIPS = 24


@dataclass
class Scored(FakeClip):
    rewards: Tensor | None = None
    terminals: Tensor | None = None


class ScoredClips(DotClips):
    """A dot is worth how far right it is; an episode ends where it is at the very right."""

    def batch(self, indices: np.ndarray) -> Scored:
        clip = super().batch(indices)
        assert clip.states is not None
        x = clip.states[..., 0]
        return Scored(clip.frames, clip.actions, clip.states, x, x > 0.85)


@dataclass
class ScoredState:
    reward: Tensor
    continues: Tensor


class ScoringWorld:
    """Predicts scale * reward + offset, and that ends are likelier the farther right a dot is."""

    context = 3

    def __init__(self, scale: float = 1.0, offset: float = 0.0) -> None:
        self.scale, self.offset = scale, offset

    def reset(self, frames: Tensor, actions: Tensor) -> ScoredState:
        return ScoredState(torch.zeros(len(frames)), torch.ones(len(frames)))

    def step(self, state: ScoredState, action: Tensor) -> ScoredState:
        x = action[:, 0]
        return ScoredState(self.scale * x + self.offset, 1 - x)


def measure(world: ScoringWorld, clips: DotClips | None = None) -> dict:
    return reward_prediction(world, clips or ScoredClips(), HORIZONS, NUM_CLIPS)


def test_an_oracle_has_no_error_and_beats_the_last_reward():
    metrics = measure(ScoringWorld())
    assert metrics["correlation"] == pytest.approx([1] * 3)
    assert metrics["mae"] == pytest.approx([0] * 3, abs=1e-6)
    assert metrics["continue_auc"] == pytest.approx(1)
    assert metrics["copy_last_correlation"][2] < metrics["copy_last_correlation"][0] < 1
    assert metrics["copy_last_mae"][2] > metrics["copy_last_mae"][0] > 0.01
    assert (metrics["n"], metrics["sources"]) == (NUM_CLIPS, 6)
    json.dumps(metrics, allow_nan=False)


def test_a_scale_changes_the_error_and_the_bias_but_not_the_correlation():
    metrics, true = measure(ScoringWorld(scale=-2, offset=3)), measure(ScoringWorld())["mean"]
    assert metrics["correlation"] == pytest.approx([-1] * 3)
    assert metrics["bias"] == pytest.approx([3 - 3 * mean for mean in true])
    assert metrics["mae"] == pytest.approx(metrics["bias"])  # a dot is worth less than 1


def test_correlations_are_those_of_numpy_and_lie_in_their_intervals():
    metrics, clips = measure(ScoringWorld()), ScoredClips()
    every_clip = [clips.batch(np.array([i])).rewards for i in range(len(clips))]
    assert all(x is not None for x in every_clip)
    all_clips = reward_prediction(ScoringWorld(), clips, HORIZONS, len(clips))
    rewards = torch.cat([x for x in every_clip if x is not None]).double().numpy()
    for index, horizon in enumerate(HORIZONS):
        expected = np.corrcoef(rewards[:, 2], rewards[:, 2 + horizon])[0, 1]
        assert all_clips["copy_last_correlation"][index] == pytest.approx(expected)
        low, high = (metrics[f"copy_last_correlation_{end}"][index] for end in ("low", "high"))
        assert -1 <= low < metrics["copy_last_correlation"][index] < high <= 1


def test_the_order_of_horizons_and_the_unit_of_rewards_change_nothing():
    class Small(ScoredClips):
        def batch(self, indices: np.ndarray) -> Scored:
            clip = super().batch(indices)
            assert clip.rewards is not None
            return Scored(clip.frames, clip.actions, clip.states, clip.rewards * 1e-6)

    usual = measure(ScoringWorld(scale=2.0))
    turned = reward_prediction(ScoringWorld(scale=2.0), ScoredClips(), (15, 1, 4), NUM_CLIPS)
    small = measure(ScoringWorld(scale=2e-6), Small())
    for key in ("correlation", "mae", "copy_last_mae", "bias"):
        assert [turned[key][at] for at in (1, 2, 0)] == pytest.approx(usual[key])
    assert small["correlation"] == pytest.approx(usual["correlation"])
    assert small["mae"] == pytest.approx([1e-6 * error for error in usual["mae"]])


def test_what_does_not_vary_has_no_correlation_and_no_end_no_auc():
    class Worthless(ScoredClips):
        def batch(self, indices: np.ndarray) -> Scored:
            clip = super().batch(indices)
            assert clip.rewards is not None
            nothing = torch.zeros_like(clip.rewards)
            return Scored(clip.frames, clip.actions, clip.states, nothing, nothing > 0)

    metrics = measure(ScoringWorld(), Worthless())
    assert metrics["correlation"] == metrics["correlation_low"] == [None] * 3
    assert metrics["continue_auc"] is None
    json.dumps(metrics, allow_nan=False)


def test_ties_of_the_continue_probability_count_half():
    class Undecided(ScoringWorld):
        def step(self, state: ScoredState, action: Tensor) -> ScoredState:
            return ScoredState(action[:, 0], torch.full_like(action[:, 0], 0.5))

    assert measure(Undecided())["continue_auc"] == pytest.approx(0.5)
