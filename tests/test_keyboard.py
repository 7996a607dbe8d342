"""A hand on keys and a mouse, in a window that reports only what goes down."""

from __future__ import annotations

import numpy as np
import pytest

from data.toy import KEYS, MOVES
from data.vpt.vpt_actions import MOVES as WALKS
from data.vpt.vpt_actions import CameraQuantizer, action_spec
from pipeline.play.action_input import ActionInput, make_action_input
from pipeline.play.keyboard import (
    FIRST_REPEAT_SECONDS,
    REPEAT_SECONDS,
    SCRIPT,
    KeyboardInput,
    script_actions,
)

SPEC = action_spec(CameraQuantizer())


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def hand(clock: Clock) -> KeyboardInput:
    return KeyboardInput(SPEC, clock)


def done(hand: KeyboardInput) -> dict[str, str]:
    """What the next step does, by factor, without what is not done."""
    code = int(hand.get_action())
    choices = SPEC.unravel(np.array(code))
    labels = {f.name: f.labels[c] for f, c in zip(SPEC.factors, choices, strict=True)}
    return {name: label for name, label in labels.items() if label not in ("0", "none")}


def test_nothing_is_done_until_something_is_pressed(hand):
    assert done(hand) == {} and int(hand.take()) == 60 and hand.describe() == "nothing"


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
def test_each_key_does_one_thing(hand, key, does):
    assert hand.handles(key)
    hand.press(key)
    assert done(hand) == does


def test_a_key_is_held_through_the_wait_before_it_repeats_and_let_go_when_reports_end(hand, clock):
    hand.press("w")
    clock.now += FIRST_REPEAT_SECONDS - 0.01
    assert done(hand) == {"move": "forward"}
    for _ in range(20):  # now it repeats
        hand.press("w")
        clock.now += REPEAT_SECONDS - 0.01
        assert done(hand) == {"move": "forward"}
    clock.now += 0.02
    assert done(hand) == {}


def test_one_moves_and_jumps_together_though_only_the_last_key_is_reported(hand, clock):
    hand.press("w")
    clock.now += FIRST_REPEAT_SECONDS - 0.05
    hand.press("w")
    clock.now += 0.03
    hand.press("space")  # from here on the window is silent of w, which is still held
    assert done(hand) == {"move": "forward", "jump": "jump"}
    clock.now += FIRST_REPEAT_SECONDS - 0.05
    for _ in range(30):
        hand.press("space")
        clock.now += 0.03
        assert done(hand) == {"move": "forward", "jump": "jump"}
    clock.now += 1
    assert done(hand) == {}


def test_two_ways_at_once_go_between_them_and_opposites_change_the_way(hand):
    hand.press("w")
    hand.press("a")
    assert done(hand) == {"move": "forward left"}
    hand.press("s")
    assert done(hand) == {"move": "back left"}
    hand.press("d")
    assert done(hand) == {"move": "back right"}


def test_the_mouse_turns_the_view_by_its_motion_and_nothing_is_lost(hand):
    centres = np.array(SPEC.factors[0].values)
    hand.move_pointer(0.5, 0.5)
    assert done(hand) == {}  # where it is says nothing, only that it moves
    hand.move_pointer(0.75, 0.45)  # 30 degrees to the right, 6 up
    turned = np.zeros(2)
    for _ in range(12):
        yaw, pitch = SPEC.unravel(np.array(int(hand.take())))[:2]
        turned += centres[[yaw, pitch]]
    assert turned == pytest.approx([30, -6], abs=0.35)
    assert done(hand) == {}


def test_the_button_attacks_while_it_is_down(hand, clock):
    hand.mouse_button(True)
    clock.now += 60
    assert done(hand) == {"attack": "attack"}
    hand.mouse_button(False)
    assert done(hand) == {}


def test_after_an_arrow_the_view_stands_still(hand, clock):
    for _ in range(10):
        hand.press("right")
        assert done(hand) == {"yaw": "+5.8"}
        clock.now += 0.04
    clock.now += FIRST_REPEAT_SECONDS
    assert done(hand) == {}


def test_who_takes_over_leaves_nothing_held(hand):
    hand.press("w")
    hand.move_pointer(0.1, 0.1)
    hand.move_pointer(0.9, 0.9)
    hand.rest(np.array(61))
    assert hand.describe() == "yaw +0.6" and done(hand) == {}


def test_keys_of_the_game_are_not_claimed_and_other_worlds_have_other_hands():
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
