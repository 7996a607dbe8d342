"""From keys and a mouse to action codes, for a world such as Minecraft.

A key acts while it is held, and for one step at least; one whose opposite is pressed is released at
once.  Keys are those of a place on the keyboard (window.py), so that WASD lie in a square on every
layout.
"""

from __future__ import annotations

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
DEGREES_PER_WIDTH = 120.0  # turn of the view when the mouse crosses the frame
ARROW_DEGREES = 5.0  # turn per step with an arrow held
BUTTON_ACTION = "attack"


class KeyboardInput:
    """Input for actions made of factors: keys, and turns in degrees."""

    def __init__(self, spec: ActionSpec) -> None:
        self.spec = spec
        self.action = np.array(0)
        self.held: set[str] = set()
        """Actions whose keys, or button, are down."""
        self._tapped: set[str] = set()  # pressed since the last step, perhaps up again
        self._mouse: tuple[float, float] | None = None
        self._pending_degrees = {"yaw": 0.0, "pitch": 0.0}  # turns of the mouse not yet taken
        self.pointer = None
        self.action = self._encode()

    def handles(self, key: str) -> bool:
        """Return whether a key steers."""
        return key in KEY_BINDINGS or key in TURNS

    def press(self, key: str) -> None:
        """Handle a key that goes down, or is held."""
        if self.handles(key):
            self._begin(_action_of(key))

    def release(self, key: str) -> None:
        """Handle a key that comes up."""
        if self.handles(key):
            self.held.discard(_action_of(key))

    def mouse_button(self, down: bool) -> None:
        """Handle the left mouse button."""
        if down:
            self._begin(BUTTON_ACTION)
        else:
            self.held.discard(BUTTON_ACTION)

    def lift_pointer(self) -> None:
        """The next motion begins elsewhere, and the way there turns nothing."""
        self._mouse = None

    def move_pointer(self, x: float, y: float) -> None:
        """Turn the view by the mouse's motion; x and y are fractions of the frame."""
        if self._mouse is not None:
            self._pending_degrees["yaw"] += DEGREES_PER_WIDTH * (x - self._mouse[0])
            self._pending_degrees["pitch"] += DEGREES_PER_WIDTH * (y - self._mouse[1])
        self._mouse = (x, y)

    def set_action(self, action: np.ndarray) -> None:
        """Continue from an action of the dataset or a controller, with nothing held."""
        self.action = np.array(action, np.int64)
        self.held.clear()
        self._tapped.clear()
        self._pending_degrees = dict.fromkeys(self._pending_degrees, 0.0)

    def get_action(self) -> np.ndarray:
        """Return the code of this step; motion beyond the largest turn is kept for the next."""
        self.action = self._encode()
        self._tapped.clear()
        return self.action

    @property
    def help(self) -> str:
        return "WASD move  space jump  mouse or arrows look  left button or F attack"

    def describe(self) -> str:
        """Describe the action in a few words."""
        return self.spec.describe(int(self.action))

    def _begin(self, action: str) -> None:
        if action in self.held:  # a window reports a held key again and again
            return
        for actions in (self.held, self._tapped):
            actions.discard(OPPOSITE.get(action, ""))
            actions.add(action)

    def _encode(self) -> np.ndarray:
        acting = self.held | self._tapped
        choices = [
            self._turn(factor, acting) if factor.values else _pressed_choice(factor, acting)
            for factor in self.spec.factors
        ]
        return self.spec.ravel(np.array(choices))

    def _turn(self, factor: Factor, acting: set[str]) -> int:
        degrees = self._pending_degrees.get(factor.name, 0.0)
        arrows = sum(
            sign * ARROW_DEGREES
            for key, (axis, sign) in TURNS.items()
            if axis == factor.name and _action_of(key) in acting
        )
        values = np.array(factor.values)
        choice = int(np.abs(values - degrees - arrows).argmin())
        if factor.name in self._pending_degrees:
            remainder = degrees + arrows - values[choice]
            # arrows leave no remainder, or the view would keep turning after them
            self._pending_degrees[factor.name] = 0.0 if arrows else float(remainder)
        return choice


def _action_of(key: str) -> str:
    return KEY_BINDINGS.get(key, f"turn {key}")


def _pressed_choice(factor: Factor, pressed: set[str]) -> int:
    """Return the choice with the most words of which all are pressed."""
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
"""Steps, and their choice per factor; for degrees the nearest one."""


def script_actions(spec: ActionSpec, steps: int) -> np.ndarray:
    """Return `steps` codes of a walk that tries everything, repeated: (N,) int64."""
    factor_names = {factor.name for factor in spec.factors}
    unknown = {name for _, segment in SCRIPT for name in segment} - factor_names
    if unknown:
        raise ValueError(
            f"--actions script walks and turns, but this world's actions have no "
            f"{', '.join(sorted(unknown))}; --actions random or dataset works in any world"
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
