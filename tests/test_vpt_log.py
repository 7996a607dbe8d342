"""Parsing of Minecraft logs, with the recorder's quirks."""

import json
from pathlib import Path

import numpy as np
import pytest
from vpt_clips import line

from data.vpt.vpt_actions import INPUT_COLUMN, CameraQuantizer, action_spec, encode
from data.vpt.vpt_log import read_log

REAL = Path(__file__).parents[2] / "shared" / "data" / "vpt"


def read(*lines, skip_invalid=False):
    content = "\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines)
    return read_log(content.encode(), "a.jsonl", skip_invalid)


def column(log, name):
    return log.inputs[:, INPUT_COLUMN[name]].tolist()


def test_keys_buttons_and_turns_are_read():
    log = read(line(10, -20, keys=["w", "q", "5"], buttons=[1, 2], new=[1]))
    held = {name for name, at in INPUT_COLUMN.items() if log.inputs[0, at] == 1}
    assert held == {"forward", "drop", "hotbar.5", "use", "pickItem"}
    assert log.inputs[0, [INPUT_COLUMN["pitch_degrees"], INPUT_COLUMN["yaw_degrees"]]].tolist() == [
        -3.0,
        1.5,
    ]


def test_a_turn_of_less_than_a_degree_is_not_lost():
    assert column(read(line(6)), "yaw_degrees") == pytest.approx([0.9])


def test_a_button_stuck_from_the_start_is_ignored_until_it_is_pressed():
    held = line(buttons=[0])
    log = read(line(buttons=[0], new=[0]), held, line(buttons=[0], new=[0]), held, line())
    assert column(log, "attack") == [0, 0, 1, 1, 0]
    free = read(line(), line(buttons=[0], new=[0]), held)
    assert column(free, "attack") == [0, 1, 1]


def test_a_stuck_button_does_not_hide_the_others():
    log = read(line(buttons=[0], new=[0]), line(buttons=[0, 1], new=[1]))
    assert column(log, "attack") == [0, 0] and column(log, "use") == [0, 1]


def test_the_wheel_selects_slots_as_keys_do():
    log = read(line(hotbar=2), line(hotbar=2), line(hotbar=8))
    assert column(log, "hotbar.3") == [1, 0, 0] and column(log, "hotbar.9") == [0, 0, 1]


def test_null_devices_and_unknown_buttons_and_keys_do_nothing():
    empty = line(mouse=None, keyboard=None)
    odd = line(keys=["f3", "caps.lock", "scancode.0"], buttons=[3, 7])
    assert (read(empty, odd).inputs == 0).all()


def test_fields_that_competitions_omit_are_optional():
    log = read('{"mouse": {"dx": 20.0}, "keyboard": {"keys": ["key.keyboard.w"]}}')
    assert column(log, "forward") == [1] and column(log, "yaw_degrees") == [3.0]
    assert log.angles is None


def test_a_gui_is_marked_and_its_cursor_kept():
    log = read(line(), line(isGuiOpen=True) | {"mouse": {"x": 274.0, "y": 338.0}})
    assert column(log, "gui") == [0, 1] and log.cursor[1].tolist() == [274.0, 338.0]


@pytest.mark.parametrize("broken", ['{"mouse": {"dx": 1', "", '{"mouse": {"dx": "far"}}', "[]"])
def test_an_invalid_line_is_named_by_number_or_repeats_the_tick_before(broken):
    lines = (line(keys=["w"]), line(30, keys=["w"]), broken, line())
    with pytest.raises(ValueError, match=r"a\.jsonl line 3 is invalid.*--skip-invalid"):
        read(*lines)
    log = read(*lines, skip_invalid=True)
    assert len(log) == 4 and log.invalid_lines == (3,)
    assert column(log, "forward") == [1, 1, 1, 0]
    assert column(log, "yaw_degrees") == [0, 4.5, 0, 0]  # a turn is not repeated


def test_logs_of_minerl_dictionaries_are_read():
    lines = ({"camera": [0.6, -3.0], "forward": 1, "attack": 0}, "{", {"camera": [0, 0], "jump": 1})
    with pytest.raises(ValueError, match=r"a\.jsonl line 2 is invalid"):
        read(*lines)
    log = read(*lines, skip_invalid=True)
    assert column(log, "yaw_degrees") == [-3, 0, 0] and column(log, "forward") == [1, 1, 0]
    assert column(log, "jump") == [0, 0, 1] and log.invalid_lines == (2,) and log.angles is None
    with pytest.raises(ValueError, match=r"a\.jsonl: action 1 has fly"):
        read(lines[0], {"camera": [0, 0], "fly": 1})


def test_an_editors_mark_and_zeros_of_a_power_cut_are_no_lines():
    content = json.dumps(line(keys=["w"])).encode()
    log = read_log(b"\xef\xbb\xbf" + content + b"\r\n" + content + b"\r\n" + bytes(512), "a.jsonl")
    assert column(log, "forward") == [1, 1]


@pytest.mark.parametrize(
    "broken",
    ['{"mouse": {"dx": 1e39}}', '{"mouse": {"x": -1e30}}', '{"yaw": 1e300}', '{"mouse":' * 5000],
)
def test_numbers_that_no_recorder_writes_are_an_invalid_line(broken):
    with pytest.raises(ValueError, match=r"a\.jsonl line 2 is invalid") as problem:
        read(line(), broken)
    assert len(str(problem.value)) < 400
    assert read(line(), broken, skip_invalid=True).invalid_lines == (2,)


@pytest.mark.parametrize(
    "action",
    [{"camera": [1, 2, 3]}, {"camera": [None, 0]}, {"camera": "far"}, {"camera": [1e300, 0]},
     {"camera": [0, 0], "jump": [1, 2]}, {"camera": [0, 0], "jump": {"a": 1}},
     {"camera": [0, 0], "fly": [[1], [1, 2]]}, {"camera": [0, 0], "equip": "x" * 9000}],
)  # fmt: skip
def test_odd_values_of_minerl_dictionaries_are_refused_in_one_short_line(action):
    with pytest.raises(ValueError, match=r"a\.jsonl: action 1 has") as problem:
        read({"camera": [0, 0]}, action)
    assert len(str(problem.value)) < 500 and "\n" not in str(problem.value)


def test_an_empty_log_is_refused():
    with pytest.raises(ValueError, match="a.jsonl is empty"):
        read("")


@pytest.mark.skipif(not REAL.exists(), reason="the public logs are not here")
def test_every_line_of_the_public_logs_can_be_encoded():
    logs = sorted(REAL.glob("*.jsonl"))
    for path in logs:
        log = read_log(path.read_bytes(), path.name)
        codes = encode(log.inputs, CameraQuantizer())
        assert len(codes) == path.read_bytes().count(b"\n")
        assert codes.min() >= 0 and codes.max() < action_spec(CameraQuantizer()).size
        assert column(log, "attack")[0] == 0, "all of them start with the button stuck"
        assert np.isfinite(log.inputs).all() and log.angles is not None
    assert logs
