"""Open-loop metrics of worlds whose worth is known."""

import json

import numpy as np
import pytest
import torch
from fake_worlds import Centroid, CopyWorld, DotClips, Identity, OracleWorld

from evaluation.measures.open_loop import imagine, open_loop
from evaluation.measures.sample_clips import choose_clips

HORIZONS = (1, 2, 4, 8)


class Lossy(Identity):
    """Keeps eight levels of every pixel."""

    def encode(self, frames: torch.Tensor) -> torch.Tensor:
        return frames.flatten(1).long() // 32 * 32


def test_an_oracle_is_exact_at_every_horizon():
    metrics = open_loop(OracleWorld(), DotClips(), HORIZONS, num_clips=24, estimator=Centroid())
    assert metrics["psnr"] == pytest.approx([100] * 4)
    assert metrics["ssim"] == pytest.approx([1] * 4)
    assert np.all(np.array(metrics["copy_last_agent_px"]) > metrics["agent_px"])
    assert min(metrics["delta_psnr"]) > 50


def test_copying_equals_the_copy_baselines_exactly():
    metrics = open_loop(CopyWorld(), DotClips(), HORIZONS, num_clips=24, estimator=Centroid())
    assert metrics["psnr"] == metrics["copy_last_psnr"] == metrics["copy_last_reconstructed_psnr"]
    assert metrics["ssim"] == metrics["copy_last_ssim"]
    assert metrics["agent_px"] == metrics["copy_last_agent_px"]
    assert metrics["delta_psnr"] == [0] * 4


def test_a_lossy_tokenizer_separates_the_two_copies_and_bounds_the_psnr():
    metrics = open_loop(OracleWorld(Lossy()), DotClips(), HORIZONS, num_clips=24)
    assert metrics["psnr"] == metrics["reconstruction_psnr"]
    assert metrics["copy_last_psnr"] != metrics["copy_last_reconstructed_psnr"]
    copying = open_loop(CopyWorld(Lossy()), DotClips(), HORIZONS, num_clips=24)
    assert copying["psnr"] == copying["copy_last_reconstructed_psnr"]


def test_metrics_do_not_depend_on_the_batch_size():
    one = open_loop(CopyWorld(), DotClips(), HORIZONS, num_clips=20, batch_size=3)
    two = open_loop(CopyWorld(), DotClips(), HORIZONS, num_clips=20, batch_size=20)
    for name, values in one.items():
        assert values == pytest.approx(two[name])


def test_horizon_h_is_h_steps_after_the_last_true_frame():
    clip = DotClips().batch(np.array([0, 40]))
    for context in (1, 3):
        frames = imagine(OracleWorld(), clip.frames, clip.actions, context, [0, 1, 5])
        assert torch.equal(frames, clip.frames[:, [context - 1, context, context + 4]])


def test_horizons_are_given_back_in_the_order_that_they_were_asked_for():
    clip = DotClips().batch(np.arange(3))
    arguments = OracleWorld(), clip.frames, clip.actions, 3
    one, four = imagine(*arguments, (1, 4)).unbind(1)
    assert not torch.equal(one, four)
    found = imagine(*arguments, (4, 1, 4))
    assert torch.equal(found, torch.stack([four, one, four], 1))


def test_clips_are_spread_over_all_episodes():
    episodes = np.repeat([0, 1, 2, 3], [40, 40, 3, 40])
    chosen = choose_clips(episodes, 20, seed=0)
    assert np.bincount(episodes[chosen]).tolist() in ([6, 6, 3, 5], [6, 5, 3, 6], [5, 6, 3, 6])
    assert len(set(chosen)) == 20
    assert len(choose_clips(episodes, 1000, seed=0)) == len(episodes)


def test_shuffled_actions_come_from_another_episode():
    clips = DotClips(episodes=2)
    requested = []

    class SpyClips(DotClips):
        def batch(self, indices: np.ndarray):
            requested.append([self.episode_of(i) for i in indices])
            return clips.batch(indices)

    open_loop(CopyWorld(), SpyClips(episodes=2), HORIZONS, num_clips=16, batch_size=16)
    assert all(own != other for own, other in zip(*requested, strict=True))


def test_intervals_contain_the_metric_and_all_is_plain_json():
    metrics = open_loop(
        OracleWorld(), DotClips(), HORIZONS, num_clips=24, estimator=Centroid(), intervals=True
    )
    low, high = metrics["copy_last_psnr_low"], metrics["copy_last_psnr_high"]
    for index in range(4):
        assert low[index] < metrics["copy_last_psnr"][index] < high[index]
    assert {"delta_psnr_low", "agent_px_high", "copy_last_agent_px_low"} <= set(metrics)
    json.dumps(metrics, allow_nan=False)


def test_without_an_estimator_there_are_no_state_errors():
    assert "agent_px" not in open_loop(OracleWorld(), DotClips(), HORIZONS, num_clips=4)
