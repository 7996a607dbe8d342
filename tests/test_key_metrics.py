"""Pressed keys, and F1 and correlation computed manually."""

import pytest
import torch

from data.actions import ActionSpec, Factor
from data.toy import MOVES
from data.vpt.vpt_actions import CameraQuantizer, action_spec
from evaluation.measures.key_metrics import (
    as_factored,
    correlation,
    key_names,
    key_scores,
    noop_choices,
    pressed_keys,
)

PAD = ActionSpec(
    "discrete",
    (),
    factors=(
        Factor("turn", ("-1", "0", "1"), (-1.0, 0.0, 1.0)),
        Factor("fire", ("none", "fire")),
        Factor("move", ("none", "forward", "left", "forward left")),
    ),
)


def test_a_label_of_two_words_presses_two_keys_and_a_turn_presses_none():
    assert key_names(PAD) == ("fire", "forward", "left")
    choices = torch.tensor([[0, 0, 3], [2, 1, 1], [1, 0, 0]])
    pressed = [[False, True, True], [True, True, False], [False, False, False]]
    assert pressed_keys(PAD, choices).tolist() == pressed


def test_f1_is_that_of_hits_false_alarms_and_misses():
    truth = torch.tensor([[1, 0, 1], [1, 0, 3], [1, 0, 2], [1, 0, 0]])
    predicted = torch.tensor([[1, 0, 1], [1, 0, 2], [1, 1, 3], [1, 0, 1]])
    scores = key_scores(PAD, truth, predicted)
    # forward: 1 hit, 2 false alarms, 1 miss; left: 2 hits; fire: 1 false alarm, never pressed
    assert scores["f1"] == {"fire": None, "forward": pytest.approx(2 / 5), "left": 1.0}
    assert scores["support"] == {"fire": 0, "forward": 2, "left": 2}


def test_the_noop_is_the_code_described_as_nothing():
    spec = action_spec(CameraQuantizer())
    noop = int(spec.ravel(noop_choices(spec)))
    assert noop == 60 and spec.describe(noop) == "nothing"
    assert key_names(spec) == ("attack", "jump", "forward", "left", "back", "right")


def test_codes_without_factors_are_one_factor():
    spec = as_factored(MOVES)
    assert spec.size == MOVES.size and as_factored(PAD) is PAD
    codes = torch.arange(MOVES.size)
    assert torch.equal(spec.unravel(codes)[:, 0], codes)
    assert key_names(spec) == ("left", "right", "up", "down")


def test_an_action_space_of_one_code_has_no_keys():
    spec = as_factored(ActionSpec("discrete", ("go",)))
    choices = torch.zeros(4, 1, dtype=torch.long)
    assert pressed_keys(spec, choices).shape == (4, 0)
    assert key_scores(spec, choices, choices) == {"f1": {}, "support": {}}


def test_a_correlation_needs_variance():
    line = torch.tensor([1.0, 2.0, 3.0, 5.0])
    assert correlation(line, 3 - 2 * line) == pytest.approx(-1)
    assert correlation(line, torch.tensor([0.0, 0.0, 1.0, 1.0])) == pytest.approx(5 / 35**0.5)
    assert correlation(line, torch.full((4,), 0.1)) is None
