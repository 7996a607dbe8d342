"""Controllability of worlds that obey actions, ignore them, or obey half of them."""

import json

import pytest
import torch
from key_worlds import DeafWorld, HalfDeafWorld, KeyClips, KeyReader, ObedientWorld, StillWorld

from evaluation.measures.controllability import controllability


def measure(world, clips=None, steps: int = 6, **settings):
    return controllability(world, clips or KeyClips(), KeyReader(), steps, num_clips=96, **settings)


def test_a_world_that_obeys_scores_as_the_true_frames():
    metrics = measure(ObedientWorld())
    assert metrics["imagined"] == metrics["real"] == metrics["reconstructed"]
    assert metrics["real"]["f1"] == {"up": 1.0, "down": 1.0}
    assert metrics["real"]["correlation"]["across"] == pytest.approx(1)
    assert metrics["n"] == 96 and metrics["sources"] == 6
    assert metrics["imagined"]["n"] == 96 * 6
    json.dumps(metrics, allow_nan=False)


def test_actions_of_another_clip_agree_by_chance():
    metrics = measure(ObedientWorld())["shuffled_actions"]
    assert all(0.15 < value < 0.5 for value in metrics["f1"].values())
    assert abs(metrics["correlation"]["across"]) < 0.25


def test_a_world_that_ignores_actions_agrees_by_chance_with_its_own():
    metrics = measure(DeafWorld())
    chance, own = metrics["shuffled_actions"], metrics["imagined"]
    for key in ("up", "down"):
        assert own["f1"][key] == pytest.approx(chance["f1"][key], abs=0.15)
    assert own["correlation"]["across"] == pytest.approx(chance["correlation"]["across"], abs=0.25)
    assert metrics["real"]["f1"]["up"] == 1


def test_each_factor_is_scored_by_itself():
    metrics = measure(HalfDeafWorld())["imagined"]
    assert metrics["correlation"]["across"] == pytest.approx(1)
    assert metrics["f1"]["up"] < 0.5


def test_without_motion_no_key_is_predicted_and_there_is_no_correlation():
    metrics = measure(StillWorld())["imagined"]
    assert metrics["f1"] == {"up": 0.0, "down": 0.0}
    assert metrics["correlation"] == {"across": None}


def test_a_key_that_is_never_pressed_has_no_f1():
    metrics = measure(ObedientWorld(), KeyClips(keys=2))
    assert metrics["real"]["f1"] == {"up": 1.0, "down": None}
    assert metrics["real"]["support"]["down"] == 0 < metrics["real"]["support"]["up"]


def test_metrics_do_not_depend_on_the_batch_size():
    assert measure(ObedientWorld(), batch_size=7) == measure(ObedientWorld(), batch_size=96)


def test_a_single_clip_has_no_other_to_compare_with():
    with pytest.raises(ValueError, match="clips with each other"):
        controllability(ObedientWorld(), KeyClips(1, length=9), KeyReader(), 6)


def test_a_world_that_lags_a_step_does_not_obey():
    class Late(ObedientWorld):
        """Takes the action of a step ago."""

        def reset(self, frames, actions):
            self.before = torch.full((len(frames),), 2)
            return super().reset(frames, actions)

        def heard(self, action):
            now, self.before = self.before, action
            return super().heard(now)

    assert measure(Late())["imagined"]["f1"]["up"] < 0.6
