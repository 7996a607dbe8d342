"""A recorder's log, one JSON object a tick, and MineRL's dictionaries, as the inputs of each tick.

Letters: N ticks, I inputs (data/vpt/vpt_actions.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from data.vpt.vpt_actions import BUTTONS, COLUMN, DEGREES, HELD, INPUT_NAMES, KEYS


class _Mouse(msgspec.Struct):
    x: float = 0.0
    y: float = 0.0
    dx: float = 0.0
    dy: float = 0.0
    buttons: list[int] | None = None
    newButtons: list[int] | None = None


class _Keyboard(msgspec.Struct):
    keys: list[str] | None = None


class _Line(msgspec.Struct):
    """What is read of a line; BASALT's logs lack much, and 6.13's can have null devices."""

    mouse: _Mouse | None = None
    keyboard: _Keyboard | None = None
    isGuiOpen: bool = False
    hotbar: int | None = None
    yaw: float | None = None
    pitch: float | None = None


_read_line = msgspec.json.Decoder(_Line)
_read_action = msgspec.json.Decoder(dict[str, Any])
_NO_MOUSE, _NO_KEYBOARD = _Mouse(), _Keyboard()
_KEY_COLUMN = {key: COLUMN[name] for key, name in KEYS.items()}
_BUTTON_COLUMN = {number: COLUMN[name] for number, name in enumerate(BUTTONS)}
_FIRST_SLOT = COLUMN["hotbar.1"]


@dataclass(frozen=True)
class Log:
    """What a player did, tick by tick."""

    inputs: np.ndarray  # (N, I) float32
    cursor: np.ndarray  # (N, 2) float32, x and y in the 1280 x 720 window
    angles: np.ndarray | None  # (N, 2) float64, absolute pitch and yaw in degrees, if recorded
    bad: tuple[int, ...] = ()  # numbers of broken lines, from 1; the tick before stands for them

    def __len__(self) -> int:
        return len(self.inputs)


def read_log(content: bytes, where: str, skip_bad: bool = False) -> Log:
    """Read a .jsonl file's content: the recorder's lines, or MineRL's dictionaries.

    ValueError names the first line that cannot be read. With `skip_bad` such a line counts as the
    tick before it, with nothing new done, so that frames and lines stay in step.
    """
    lines = content.strip().splitlines()
    if not lines:
        raise ValueError(f"{where} is empty; a log has a line for each frame")
    minerl = b'"camera"' in lines[0] and b'"mouse"' not in lines[0]
    decode = _read_action.decode if minerl else _read_line.decode
    read: list[Any] = []
    bad: list[int] = []
    previous: Any = {} if minerl else _Line()
    for number, line in enumerate(lines, 1):
        try:
            previous = decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as problem:
            if not skip_bad:
                raise ValueError(
                    f"{where} line {number} is broken ({problem}); mend or leave out the pair, or "
                    f"--skip-bad reads on"
                ) from None
            bad.append(number)
            previous = _with_nothing_new(previous)
        read.append(previous)
    if not minerl:
        return _from_lines(read, tuple(bad))
    try:
        inputs = from_minerl(read)
    except ValueError as problem:
        raise ValueError(f"{where}: {problem}") from None
    return Log(inputs, np.zeros((len(read), 2), np.float32), None, tuple(bad))


def _with_nothing_new(tick: Any) -> Any:
    """The same keys held, and nothing turned."""
    if isinstance(tick, dict):
        return tick | {"camera": [0.0, 0.0]}
    mouse = tick.mouse or _NO_MOUSE
    still = _Mouse(mouse.x, mouse.y, buttons=mouse.buttons)
    return msgspec.structs.replace(tick, mouse=still)


def _from_lines(lines: list[_Line], bad: tuple[int, ...]) -> Log:
    count = len(lines)
    inputs = np.zeros((count, len(INPUT_NAMES)), np.float32)
    mice = [line.mouse or _NO_MOUSE for line in lines]
    moved = np.array([(m.x, m.y, m.dx, m.dy) for m in mice], np.float64)
    inputs[:, COLUMN["yaw_degrees"]] = DEGREES * moved[:, 2]
    inputs[:, COLUMN["pitch_degrees"]] = DEGREES * moved[:, 3]
    inputs[:, COLUMN["gui"]] = [line.isGuiOpen for line in lines]

    rows, columns = [], []
    stuck = mice[0].newButtons == [0]  # the recorder can begin with the button down (VPT's loader)
    slot = 0
    for row, (line, mouse) in enumerate(zip(lines, mice, strict=True)):
        if row and stuck and mouse.newButtons and 0 in mouse.newButtons:
            stuck = False
        held = [
            _BUTTON_COLUMN[b]
            for b in mouse.buttons or ()
            if b in _BUTTON_COLUMN and not (b == 0 and stuck)
        ]
        keyboard = line.keyboard or _NO_KEYBOARD
        held += [_KEY_COLUMN[key] for key in keyboard.keys or () if key in _KEY_COLUMN]
        if line.hotbar is not None and line.hotbar != slot:
            slot = line.hotbar  # turned by the wheel, or by a key that says so too
            if 0 <= slot < 9:
                held.append(_FIRST_SLOT + slot)
        rows += [row] * len(held)
        columns += held
    inputs[rows, columns] = 1
    angles = None
    if all(line.yaw is not None and line.pitch is not None for line in lines):
        angles = np.array([(line.pitch, line.yaw) for line in lines], np.float64)
    return Log(inputs, moved[:, :2].astype(np.float32), angles, bad)


def from_minerl(actions: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """MineRL's dictionaries, `camera` = [pitch, yaw] in degrees and 0 or 1 for what is held, as
    inputs: (N, I) float32. ValueError names what is neither known nor 0."""
    inputs = np.zeros((len(actions), len(INPUT_NAMES)), np.float32)
    for row, action in enumerate(actions):
        for name, value in action.items():
            if name == "camera":
                pitch, yaw = np.asarray(value, np.float64).reshape(2)
                inputs[row, COLUMN["pitch_degrees"]] = pitch
                inputs[row, COLUMN["yaw_degrees"]] = yaw
            elif name in HELD:
                inputs[row, COLUMN[name]] = float(np.asarray(value).reshape(())) != 0
            elif np.any(np.asarray(value)):
                raise ValueError(
                    f"action {row} has {name} = {value!r}; known are camera, {', '.join(HELD)}"
                )
    return inputs
