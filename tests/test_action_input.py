"""Mouse and keys to actions, of any action space."""

import numpy as np
import pytest

from data.actions import ActionSpec
from data.toy import MOVES, POINTER, SPEED
from pipeline.play.action_input import ActionInput


def test_input_for_codes():
    action_input = ActionInput(MOVES)
    assert action_input.describe() == "stay"
    for key, name in (("left", "left"), ("up", "up"), ("5", "down"), ("9", "down"), (".", "stay")):
        action_input.press(key)
        assert action_input.describe() == name
    action_input.press(",")
    assert int(action_input.action) == 4 and action_input.action.dtype == np.int64
    assert action_input.pointer is None and "2 left" in action_input.help
    action_input.move_pointer(0.2, 0.2)
    assert int(action_input.action) == 4
    walk = ActionInput(ActionSpec("discrete", ("noop", "forward", "back")))
    walk.press("up")
    assert walk.describe() == "forward"


def test_input_for_numbers_that_are_no_pointer():
    action_input = ActionInput(
        ActionSpec("continuous", ("a", "b", "c"), (-1, -1, 0), (1, 1, 10), "m")
    )
    np.testing.assert_allclose(action_input.action, [0, 0, 5])
    for key in ("right", "up", "3", "+", "+", "-"):
        action_input.press(key)
    np.testing.assert_allclose(action_input.action, [0.08, -0.08, 5.4], rtol=1e-5)
    assert "c 5.4" in action_input.describe() and "+ -" in action_input.help
    action_input.move_pointer(0, 0)
    np.testing.assert_allclose(action_input.action[0], 0.08, rtol=1e-5)


def test_input_continues_from_another_action():
    action_input, action = ActionInput(POINTER), np.array([100, 200], np.float32)
    action_input.set_action(action)
    action_input.press("right")
    assert action[0] == 100 and action_input.action[0] > 100
    assert action_input.pointer == pytest.approx((action_input.action[0] / 512, 200 / 512))
    assert SPEED < 512
