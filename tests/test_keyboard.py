"""Input from keys and a mouse."""

from __future__ import annotations

import numpy as np
import pytest

from data.toy import KEYS, MOVES
from data.vpt.vpt_actions import MOVES as WALKS
from data.vpt.vpt_actions import CameraQuantizer, action_spec
from pipeline.play.action_input import ActionInput, make_action_input
from pipeline.play.keyboard import SCRIPT, KeyboardInput, script_actions

SPEC = action_spec(CameraQuantizer())


@pytest.fixture
def keyboard() -> KeyboardInput:
    return KeyboardInput(SPEC)


def done(keyboard: KeyboardInput) -> dict[str, str]:
    """What the next step does, by factor, without what it does not do."""
    code = int(keyboard.get_action())
    choices = SPEC.unravel(np.array(code))
    labels = {f.name: f.labels[c] for f, c in zip(SPEC.factors, choices, strict=True)}
    return {name: label for name, label in labels.items() if label not in ("0", "none")}


def test_nothing_is_done_until_something_is_pressed(keyboard):
    assert done(keyboard) == {} and int(keyboard.get_action()) == 60
    assert keyboard.describe() == "nothing"


@pytest.mark.parametrize(
    "key, does",
    [
        ("w", {"move": "forward"}),
        ("s", {"move": "back"}),
        ("a", {"move": "left"}),
        ("d", {"move": "right"}),
        ("space", {"jump": "jump"}),
        ("f", {"attack": "attack"}),
        ("left", {"yaw": "-5.8"}),
        ("right", {"yaw": "+5.8"}),
        ("up", {"pitch": "-5.8"}),
        ("down", {"pitch": "+5.8"}),
    ],
)
def test_each_key_does_one_thing(keyboard, key, does):
    assert keyboard.handles(key)
    keyboard.press(key)
    assert done(keyboard) == does


def test_a_key_acts_until_it_comes_up(keyboard):
    keyboard.press("w")
    for _ in range(30):
        assert done(keyboard) == {"move": "forward"}
    keyboard.release("w")
    assert done(keyboard) == {}


def test_a_key_that_is_tapped_between_two_steps_acts_for_one(keyboard):
    keyboard.press("w")
    keyboard.release("w")
    keyboard.mouse_button(True)
    keyboard.mouse_button(False)
    assert done(keyboard) == {"move": "forward", "attack": "attack"}
    assert done(keyboard) == {}


def test_each_of_two_keys_that_are_held_is_released_alone(keyboard):
    keyboard.press("w")
    keyboard.press("space")
    for _ in range(30):
        keyboard.press("space")  # a window repeats the last one
        assert done(keyboard) == {"move": "forward", "jump": "jump"}
    keyboard.press("space")
    keyboard.release("space")
    assert done(keyboard) == {"move": "forward"}
    keyboard.release("w")
    assert done(keyboard) == {}


def test_two_directions_make_a_diagonal_and_the_opposite_one_replaces(keyboard):
    keyboard.press("w")
    keyboard.press("a")
    assert done(keyboard) == {"move": "forward left"}
    keyboard.press("s")
    assert done(keyboard) == {"move": "back left"}
    keyboard.press("d")
    assert done(keyboard) == {"move": "back right"}


def test_the_mouse_turns_the_view_by_its_motion_and_nothing_is_lost(keyboard):
    centers = np.array(SPEC.factors[0].values)
    keyboard.move_pointer(0.5, 0.5)
    assert done(keyboard) == {}  # its position does not matter, only its motion
    keyboard.move_pointer(0.75, 0.45)  # 30 degrees to the right, 6 up
    turned = np.zeros(2)
    for _ in range(12):
        yaw, pitch = SPEC.unravel(np.array(int(keyboard.get_action())))[:2]
        turned += centers[[yaw, pitch]]
    assert turned == pytest.approx([30, -6], abs=0.35)
    assert done(keyboard) == {}


def test_the_button_attacks_while_it_is_down(keyboard):
    keyboard.mouse_button(True)
    assert done(keyboard) == {"attack": "attack"}
    assert done(keyboard) == {"attack": "attack"}
    keyboard.mouse_button(False)
    assert done(keyboard) == {}


def test_after_an_arrow_the_view_stands_still(keyboard):
    for _ in range(10):
        keyboard.press("right")
        assert done(keyboard) == {"yaw": "+5.8"}
    keyboard.release("right")
    assert done(keyboard) == {}


def test_after_another_action_nothing_is_held(keyboard):
    keyboard.press("w")
    keyboard.move_pointer(0.1, 0.1)
    keyboard.move_pointer(0.9, 0.9)
    keyboard.set_action(np.array(61))
    assert keyboard.describe() == "yaw +0.6" and done(keyboard) == {}


def test_keys_of_the_game_are_not_handled_and_other_worlds_have_other_inputs():
    assert not any(KeyboardInput(SPEC).handles(key) for key in "rpvqnhbc")
    assert isinstance(make_action_input(KEYS), KeyboardInput)
    plain = make_action_input(MOVES)
    assert isinstance(plain, ActionInput) and not plain.handles("space")


def test_the_script_walks_turns_jumps_and_attacks_over_and_over():
    codes = script_actions(SPEC, 400)
    assert len(codes) == 400 and codes.dtype == np.int64
    once = sum(steps for steps, _ in SCRIPT)
    assert (codes[once:] == codes[: 400 - once]).all()
    yaw, pitch, attack, jump, move = SPEC.unravel(codes).T
    assert attack.any() and jump.any() and {WALKS[m] for m in move} == {"none", "forward", "back"}
    assert (yaw > 5).any() and (yaw < 5).any() and (pitch > 5).any() and (pitch < 5).any()
    with pytest.raises(ValueError, match=r"--actions script walks and turns.*attack"):
        script_actions(KEYS, 10)
