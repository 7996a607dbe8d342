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

KEYS = {"w": "forward", "s": "back", "a": "left", "d": "right", "space": "jump", "f": "attack"}
OPPOSITES = (
    ("forward", "back"), ("left", "right"), ("turn left", "turn right"), ("turn up", "turn down"),
)  # fmt: skip
OPPOSITE = {a: b for pair in OPPOSITES for a, b in (pair, pair[::-1])}
TURNS = {"left": ("yaw", -1), "right": ("yaw", 1), "up": ("pitch", -1), "down": ("pitch", 1)}
FIRST = 0.75  # seconds from a key's first report to its second: 0.66 for X, and a little more
AGAIN = 0.15  # seconds between reports of a key that is held, at most
ACROSS = 120.0  # degrees that the view turns when the mouse crosses the picture
ARROW = 5.0  # degrees of a step with an arrow held
BUTTON = "attack"


class Keys:
    """The hand of a player whose actions are independent choices: keys, and turns in degrees."""

    def __init__(self, spec: ActionSpec, clock: Callable[[], float] = time.perf_counter) -> None:
        self.spec, self.clock = spec, clock
        self.action = np.array(0)
        self.held: dict[str, float] = {}
        """What is held by key, and until when."""
        self.button_down = False
        self._place: tuple[float, float] | None = None
        self._owed = {"yaw": 0.0, "pitch": 0.0}  # degrees that the mouse has asked for
        self.pointer = None
        self.action = self._code()

    def claims(self, key: str) -> bool:
        """Tell whether a key steers."""
        return key in KEYS or key in TURNS

    def press(self, key: str) -> None:
        """Take a report of a key that goes down or is held."""
        if not self.claims(key):
            return
        name, now = KEYS.get(key, f"turn {key}"), self.clock()
        self._let_go(now)
        self.held.pop(OPPOSITE.get(name, ""), None)
        lasts = now + (AGAIN if name in self.held else FIRST)
        self.held[name] = lasts
        # while this one is reported the others are silent, held or not
        self.held = {other: max(until, lasts) for other, until in self.held.items()}

    def button(self, down: bool) -> None:
        """Take the left mouse button, of which a window reports both ways."""
        self.button_down = down

    def point(self, x: float, y: float) -> None:
        """Follow the mouse, in shares of the picture: its motion turns the view."""
        if self._place is not None:
            self._owed["yaw"] += ACROSS * (x - self._place[0])
            self._owed["pitch"] += ACROSS * (y - self._place[1])
        self._place = (x, y)

    def rest(self, action: np.ndarray) -> None:
        """Go on from an action that somebody else has taken: with nothing held."""
        self.action = np.array(action, np.int64)
        self.held.clear()
        self._owed = dict.fromkeys(self._owed, 0.0)

    def take(self) -> np.ndarray:
        """Give the code of this step; what the mouse asks beyond the largest turn is left over."""
        self._let_go(self.clock())
        self.action = self._code()
        return self.action

    @property
    def help(self) -> str:
        return "WASD move  space jump  mouse or arrows look  left button or F attack"

    def describe(self) -> str:
        """Say what this step does."""
        return self.spec.say(int(self.action))

    def _let_go(self, now: float) -> None:
        self.held = {name: until for name, until in self.held.items() if until >= now}

    def _code(self) -> np.ndarray:
        pressed = set(self.held) | ({BUTTON} if self.button_down else set())
        choices = [
            self._turn(factor) if factor.values else _pressed(factor, pressed)
            for factor in self.spec.factors
        ]
        return self.spec.join(np.array(choices))

    def _turn(self, factor: Factor) -> int:
        wanted = self._owed.get(factor.name, 0.0)
        arrows = sum(
            sign * ARROW
            for key, (axis, sign) in TURNS.items()
            if axis == factor.name and f"turn {key}" in self.held
        )
        values = np.array(factor.values)
        choice = int(np.abs(values - wanted - arrows).argmin())
        if factor.name in self._owed:
            left = wanted + arrows - values[choice]
            # arrows leave nothing over, or the view would go on turning after them
            self._owed[factor.name] = 0.0 if arrows else float(left)
        return choice


def _pressed(factor: Factor, pressed: set[str]) -> int:
    """The choice whose words are most of what is pressed, and nothing that is not."""
    words = [set(label.split()) for label in factor.labels]
    fitting = [i for i, w in enumerate(words) if i and w <= pressed]
    return max(fitting, key=lambda i: len(words[i]), default=0)


Part = tuple[int, dict[str, str | float]]
TOUR: tuple[Part, ...] = (
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


def tour(spec: ActionSpec, steps: int) -> np.ndarray:
    """Give `steps` codes of a walk that tries everything, over and over: (N,) int64."""
    known = {factor.name for factor in spec.factors}
    unknown = {name for _, part in TOUR for name in part} - known
    if unknown:
        raise ValueError(
            f"--actions script walks and turns, but this world's actions have no "
            f"{', '.join(sorted(unknown))}; --actions random or recorded works in any world"
        )
    codes: list[np.ndarray] = []
    while len(codes) < steps:
        for length, part in TOUR:
            choices = [_choice(factor, part.get(factor.name)) for factor in spec.factors]
            codes += [spec.join(np.array(choices))] * length
    return np.array(codes[:steps], np.int64)


def _choice(factor: Factor, wanted: str | float | None) -> int:
    if factor.values:
        return int(np.abs(np.array(factor.values) - float(wanted or 0)).argmin())
    return factor.labels.index(str(wanted)) if wanted else 0
