"""Controllability says of known worlds how well they obey."""

import json

import pytest
import torch
from key_worlds import DeafWorld, HalfDeafWorld, KeyClips, KeyReader, ObedientWorld, StillWorld

from evaluation.measures.controllability import controllability


def measured(world, clips=None, steps: int = 6, **settings):
    return controllability(world, clips or KeyClips(), KeyReader(), steps, num_clips=96, **settings)


def test_a_world_that_obeys_shows_what_the_true_frames_show():
    figures = measured(ObedientWorld())
    assert figures["imagined"] == figures["real"] == figures["reconstructed"]
    assert figures["real"]["f1"] == {"up": 1.0, "down": 1.0}
    assert figures["real"]["correlation"]["across"] == pytest.approx(1)
    assert figures["n"] == 96 and figures["sources"] == 6
    assert figures["imagined"]["n"] == 96 * 6
    json.dumps(figures, allow_nan=False)


def test_actions_of_another_window_agree_by_chance():
    figures = measured(ObedientWorld())["other_actions"]
    assert all(0.15 < value < 0.5 for value in figures["f1"].values())
    assert abs(figures["correlation"]["across"]) < 0.25


def test_a_world_that_ignores_actions_agrees_by_chance_with_its_own():
    figures = measured(DeafWorld())
    chance, own = figures["other_actions"], figures["imagined"]
    for key in ("up", "down"):
        assert own["f1"][key] == pytest.approx(chance["f1"][key], abs=0.15)
    assert own["correlation"]["across"] == pytest.approx(chance["correlation"]["across"], abs=0.25)
    assert figures["real"]["f1"]["up"] == 1


def test_each_factor_is_looked_at_by_itself():
    figures = measured(HalfDeafWorld())["imagined"]
    assert figures["correlation"]["across"] == pytest.approx(1)
    assert figures["f1"]["up"] < 0.5


def test_where_nothing_happens_nothing_is_pressed_and_there_is_no_correlation():
    figures = measured(StillWorld())["imagined"]
    assert figures["f1"] == {"up": 0.0, "down": 0.0}
    assert figures["correlation"] == {"across": None}


def test_a_key_that_is_never_pressed_has_no_f1():
    figures = measured(ObedientWorld(), KeyClips(keys=2))
    assert figures["real"]["f1"] == {"up": 1.0, "down": None}
    assert figures["real"]["presses"]["down"] == 0 < figures["real"]["presses"]["up"]


def test_figures_do_not_depend_on_the_batch_size():
    assert measured(ObedientWorld(), batch_size=7) == measured(ObedientWorld(), batch_size=96)


def test_one_window_alone_has_no_other_to_compare_with():
    with pytest.raises(ValueError, match="windows with each other"):
        controllability(ObedientWorld(), KeyClips(1, length=9), KeyReader(), 6)


def test_a_world_that_is_late_is_not_obedient():
    class Late(ObedientWorld):
        """Does what it was told a step ago."""

        def reset(self, frames, actions):
            self.before = torch.full((len(frames),), 2)
            return super().reset(frames, actions)

        def heard(self, action):
            now, self.before = self.before, action
            return super().heard(now)

    assert measured(Late())["imagined"]["f1"]["up"] < 0.6
