"""From keys and a mouse to the codes of a world that is played with them, such as Minecraft.

A window reports keys that go down and, of those that are held, only the last, again and again.  So
keys count as held together for as long as reports keep coming; a key whose opposite is pressed is
let go at once, and all are when the reports end.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from data.actions import ActionSpec, Factor

KEY_BINDINGS = {
    "w": "forward",
    "s": "back",
    "a": "left",
    "d": "right",
    "space": "jump",
    "f": "attack",
}
OPPOSITES = (
    ("forward", "back"), ("left", "right"), ("turn left", "turn right"), ("turn up", "turn down"),
)  # fmt: skip
OPPOSITE = {a: b for pair in OPPOSITES for a, b in (pair, pair[::-1])}
TURNS = {"left": ("yaw", -1), "right": ("yaw", 1), "up": ("pitch", -1), "down": ("pitch", 1)}
FIRST_REPEAT_SECONDS = (
    0.75  # seconds from a key's first report to its second: 0.66 for X, and a little more
)
REPEAT_SECONDS = 0.15  # seconds between reports of a key that is held, at most
DEGREES_PER_WIDTH = 120.0  # degrees that the view turns when the mouse crosses the picture
ARROW_DEGREES = 5.0  # degrees of a step with an arrow held
BUTTON_ACTION = "attack"


class KeyboardInput:
    """The hand of a player whose actions are independent choices: keys, and turns in degrees."""

    def __init__(self, spec: ActionSpec, clock: Callable[[], float] = time.perf_counter) -> None:
        self.spec, self.clock = spec, clock
        self.action = np.array(0)
        self.held: dict[str, float] = {}
        """What is held by key, and until when."""
        self.button_down = False
        self._mouse: tuple[float, float] | None = None
        self._pending_degrees = {"yaw": 0.0, "pitch": 0.0}  # degrees that the mouse has asked for
        self.pointer = None
        self.action = self._encode()

    def handles(self, key: str) -> bool:
        """Tell whether a key steers."""
        return key in KEY_BINDINGS or key in TURNS

    def press(self, key: str) -> None:
        """Take a report of a key that goes down or is held."""
        if not self.handles(key):
            return
        name, now = KEY_BINDINGS.get(key, f"turn {key}"), self.clock()
        self._release(now)
        self.held.pop(OPPOSITE.get(name, ""), None)
        expires = now + (REPEAT_SECONDS if name in self.held else FIRST_REPEAT_SECONDS)
        self.held[name] = expires
        # while this one is reported the others are silent, held or not
        self.held = {other: max(until, expires) for other, until in self.held.items()}

    def mouse_button(self, down: bool) -> None:
        """Take the left mouse button, of which a window reports both ways."""
        self.button_down = down

    def move_pointer(self, x: float, y: float) -> None:
        """Follow the mouse, in shares of the picture: its motion turns the view."""
        if self._mouse is not None:
            self._pending_degrees["yaw"] += DEGREES_PER_WIDTH * (x - self._mouse[0])
            self._pending_degrees["pitch"] += DEGREES_PER_WIDTH * (y - self._mouse[1])
        self._mouse = (x, y)

    def set_action(self, action: np.ndarray) -> None:
        """Go on from an action that somebody else has taken: with nothing held."""
        self.action = np.array(action, np.int64)
        self.held.clear()
        self._pending_degrees = dict.fromkeys(self._pending_degrees, 0.0)

    def get_action(self) -> np.ndarray:
        """Give the code of this step; what the mouse asks beyond the largest turn is left over."""
        self._release(self.clock())
        self.action = self._encode()
        return self.action

    @property
    def help(self) -> str:
        return "WASD move  space jump  mouse or arrows look  left button or F attack"

    def describe(self) -> str:
        """Say what this step does."""
        return self.spec.describe(int(self.action))

    def _release(self, now: float) -> None:
        self.held = {name: until for name, until in self.held.items() if until >= now}

    def _encode(self) -> np.ndarray:
        held = set(self.held) | ({BUTTON_ACTION} if self.button_down else set())
        choices = [
            self._turn(factor) if factor.values else _pressed_choice(factor, held)
            for factor in self.spec.factors
        ]
        return self.spec.ravel(np.array(choices))

    def _turn(self, factor: Factor) -> int:
        degrees = self._pending_degrees.get(factor.name, 0.0)
        arrows = sum(
            sign * ARROW_DEGREES
            for key, (axis, sign) in TURNS.items()
            if axis == factor.name and f"turn {key}" in self.held
        )
        values = np.array(factor.values)
        choice = int(np.abs(values - degrees - arrows).argmin())
        if factor.name in self._pending_degrees:
            remainder = degrees + arrows - values[choice]
            # arrows leave nothing over, or the view would go on turning after them
            self._pending_degrees[factor.name] = 0.0 if arrows else float(remainder)
        return choice


def _pressed_choice(factor: Factor, pressed: set[str]) -> int:
    """The choice whose words are most of what is pressed, and nothing that is not."""
    words = [set(label.split()) for label in factor.labels]
    matching = [i for i, w in enumerate(words) if i and w <= pressed]
    return max(matching, key=lambda i: len(words[i]), default=0)


Segment = tuple[int, dict[str, str | float]]
SCRIPT: tuple[Segment, ...] = (
    (40, {"move": "forward"}),
    (16, {"yaw": 5.8}),
    (30, {"move": "forward", "jump": "jump"}),
    (8, {"pitch": 3.2}),
    (30, {"attack": "attack"}),
    (8, {"pitch": -3.2}),
    (16, {"yaw": -5.8, "move": "forward"}),
    (20, {"move": "back"}),
    (10, {}),
)
"""Steps, and what is chosen in them; degrees mean the nearest choice."""


def script_actions(spec: ActionSpec, steps: int) -> np.ndarray:
    """Give `steps` codes of a walk that tries everything, over and over: (N,) int64."""
    factor_names = {factor.name for factor in spec.factors}
    unknown = {name for _, segment in SCRIPT for name in segment} - factor_names
    if unknown:
        raise ValueError(
            f"--actions script walks and turns, but this world's actions have no "
            f"{', '.join(sorted(unknown))}; --actions random or recorded works in any world"
        )
    codes: list[np.ndarray] = []
    while len(codes) < steps:
        for num_steps, segment in SCRIPT:
            choices = [_choice(factor, segment.get(factor.name)) for factor in spec.factors]
            codes += [spec.ravel(np.array(choices))] * num_steps
    return np.array(codes[:steps], np.int64)


def _choice(factor: Factor, wanted: str | float | None) -> int:
    if factor.values:
        return int(np.abs(np.array(factor.values) - float(wanted or 0)).argmin())
    return factor.labels.index(str(wanted)) if wanted else 0
