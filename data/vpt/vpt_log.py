"""Parse logs, of the recorder (a JSON object per tick) or of MineRL's dictionaries, into inputs.

Letters: N ticks, I inputs (data/vpt/vpt_actions.py).
"""

from __future__ import annotations

import codecs
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
import numpy as np

from data.io.messages import one_line
from data.vpt.vpt_actions import (
    BUTTONS,
    CAMERA_SCALER,
    INPUT_COLUMN,
    INPUT_NAMES,
    KEYS,
    MOUSE_BUTTONS,
)

LARGEST = 1e6  # of the numbers of a tick: pixels and degrees
_Number = Annotated[float, msgspec.Meta(ge=-LARGEST, le=LARGEST)]


class _Mouse(msgspec.Struct):
    x: _Number = 0.0
    y: _Number = 0.0
    dx: _Number = 0.0
    dy: _Number = 0.0
    buttons: list[int] | None = None
    newButtons: list[int] | None = None


class _Keyboard(msgspec.Struct):
    keys: list[str] | None = None


class _Line(msgspec.Struct):
    """Fields read of a line; BASALT's logs omit many, and devices in 6.13's can be null."""

    mouse: _Mouse | None = None
    keyboard: _Keyboard | None = None
    isGuiOpen: bool = False
    hotbar: int | None = None
    yaw: _Number | None = None
    pitch: _Number | None = None


_line_decoder = msgspec.json.Decoder(_Line)
_minerl_decoder = msgspec.json.Decoder(dict[str, Any])
_NO_MOUSE, _NO_KEYBOARD = _Mouse(), _Keyboard()
_KEY_COLUMN = {key: INPUT_COLUMN[name] for key, name in KEYS.items()}
_BUTTON_COLUMN = {number: INPUT_COLUMN[name] for number, name in enumerate(MOUSE_BUTTONS)}
_FIRST_SLOT = INPUT_COLUMN["hotbar.1"]


@dataclass(frozen=True)
class VptLog:
    """A player's inputs, tick by tick."""

    inputs: np.ndarray  # (N, I) float32
    cursor: np.ndarray  # (N, 2) float32, x and y in the 1280 x 720 window
    angles: np.ndarray | None  # (N, 2) float64, absolute pitch and yaw in degrees, if logged
    invalid_lines: tuple[int, ...] = ()  # line numbers, from 1; each repeats the tick before

    def __len__(self) -> int:
        return len(self.inputs)


def read_log(content: bytes, where: str, skip_invalid: bool = False) -> VptLog:
    """Read a .jsonl file's content: the recorder's lines, or MineRL's dictionaries.

    ValueError names the first invalid line. With `skip_invalid` such a line repeats the tick
    before, without its motion, so that frames and lines stay aligned.
    """
    # an editor's mark in front, and zeros behind, where the recorder lost power
    lines = content.removeprefix(codecs.BOM_UTF8).rstrip(b"\0").strip().splitlines()
    if not lines:
        raise ValueError(f"{where} is empty; a log has a line per frame")
    minerl = b'"camera"' in lines[0] and b'"mouse"' not in lines[0]
    decode = _minerl_decoder.decode if minerl else _line_decoder.decode
    ticks: list[Any] = []
    invalid_lines: list[int] = []
    previous: Any = {} if minerl else _Line()
    for number, line in enumerate(lines, 1):
        try:
            previous = decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as problem:
            if not skip_invalid:
                raise ValueError(
                    f"{where} line {number} is invalid ({one_line(problem)}); correct or remove "
                    f"the pair, or give --skip-invalid"
                ) from None
            invalid_lines.append(number)
            previous = _without_motion(previous)
        ticks.append(previous)
    if not minerl:
        return _from_lines(ticks, tuple(invalid_lines))
    try:
        inputs = from_minerl(ticks)
    except ValueError as problem:
        raise ValueError(f"{where}: {problem}") from None
    return VptLog(inputs, np.zeros((len(ticks), 2), np.float32), None, tuple(invalid_lines))


def _without_motion(tick: Any) -> Any:
    """Return the tick with the same keys held, and no turn."""
    if isinstance(tick, dict):
        return tick | {"camera": [0.0, 0.0]}
    mouse = tick.mouse or _NO_MOUSE
    motionless = _Mouse(mouse.x, mouse.y, buttons=mouse.buttons)
    return msgspec.structs.replace(tick, mouse=motionless)


def _from_lines(lines: list[_Line], invalid_lines: tuple[int, ...]) -> VptLog:
    count = len(lines)
    inputs = np.zeros((count, len(INPUT_NAMES)), np.float32)
    mice = [line.mouse or _NO_MOUSE for line in lines]
    mouse_values = np.array([(m.x, m.y, m.dx, m.dy) for m in mice], np.float64)
    inputs[:, INPUT_COLUMN["yaw_degrees"]] = CAMERA_SCALER * mouse_values[:, 2]
    inputs[:, INPUT_COLUMN["pitch_degrees"]] = CAMERA_SCALER * mouse_values[:, 3]
    inputs[:, INPUT_COLUMN["gui"]] = [line.isGuiOpen for line in lines]

    rows, columns = [], []
    stuck = mice[0].newButtons == [0]  # the recorder can start with the button down (VPT's loader)
    slot = 0
    for row, (line, mouse) in enumerate(zip(lines, mice, strict=True)):
        if row and stuck and mouse.newButtons and 0 in mouse.newButtons:
            stuck = False
        pressed = [
            _BUTTON_COLUMN[b]
            for b in mouse.buttons or ()
            if b in _BUTTON_COLUMN and not (b == 0 and stuck)
        ]
        keyboard = line.keyboard or _NO_KEYBOARD
        pressed += [_KEY_COLUMN[key] for key in keyboard.keys or () if key in _KEY_COLUMN]
        if line.hotbar is not None and line.hotbar != slot:
            slot = line.hotbar  # selected by the wheel, or by a key, which is listed too
            if 0 <= slot < 9:
                pressed.append(_FIRST_SLOT + slot)
        rows += [row] * len(pressed)
        columns += pressed
    inputs[rows, columns] = 1
    angles = None
    if all(line.yaw is not None and line.pitch is not None for line in lines):
        angles = np.array([(line.pitch, line.yaw) for line in lines], np.float64)
    return VptLog(inputs, mouse_values[:, :2].astype(np.float32), angles, invalid_lines)


def from_minerl(actions: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Convert MineRL's dictionaries, `camera` = [pitch, yaw] in degrees and 0 or 1 for each button,
    to inputs (N, I) float32. ValueError names an unknown key that is not 0."""
    inputs = np.zeros((len(actions), len(INPUT_NAMES)), np.float32)
    camera = [INPUT_COLUMN["pitch_degrees"], INPUT_COLUMN["yaw_degrees"]]
    for row, action in enumerate(actions):
        for name, value in action.items():
            if name == "camera":
                inputs[row, camera] = _numbers(value, 2, name, row)
            elif name in BUTTONS:
                inputs[row, INPUT_COLUMN[name]] = _numbers(value, 1, name, row)[0] != 0
            elif _is_set(value):
                raise ValueError(
                    f"action {row} has {name[:40]} = {repr(value)[:40]}; known are camera, "
                    f"{', '.join(BUTTONS)}"
                )
    return inputs


def _numbers(value: Any, count: int, name: str, row: int) -> np.ndarray:
    """Return the numbers of a field: (count,) float64; ValueError for anything else."""
    try:
        numbers = np.asarray(value, np.float64).reshape(count)
    except (TypeError, ValueError):
        numbers = np.full(count, np.nan)
    if not (abs(numbers) <= LARGEST).all():  # nor NaN
        raise ValueError(
            f"action {row} has {name} = {repr(value)[:40]}; it must be {count} numbers of at most "
            f"{LARGEST:.0f}"
        )
    return numbers


def _is_set(value: Any) -> bool:
    try:
        return bool(np.any(np.asarray(value)))
    except ValueError:  # lists of several lengths
        return True
