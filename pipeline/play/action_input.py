"""From mouse and keys to an action of any action space.

An action holds until it is changed; actions made of factors hold as long as their keys
(keyboard.py).
"""

from __future__ import annotations

import numpy as np

from data.actions import ActionSpec
from pipeline.play.keyboard import KeyboardInput

KEY_STEP = 0.04  # fraction of its range by which one key press changes a number
ARROWS = {"left": (0, -1), "right": (0, 1), "up": (1, -1), "down": (1, 1)}
ARROW_SYNONYMS = {"up": ("forward",), "down": ("back", "backward")}


def make_action_input(spec: ActionSpec) -> ActionInput | KeyboardInput:
    """Return the input for an action space."""
    return KeyboardInput(spec) if spec.factors else ActionInput(spec)


class ActionInput:
    """The player's action, in the environment's units."""

    def __init__(self, spec: ActionSpec) -> None:
        self.spec = spec
        self.selected_axis = 0
        """Dimension that + and - change (continuous)."""
        dtype = np.float32 if spec.kind == "continuous" else np.int64
        self.action = np.zeros(spec.shape, dtype)
        if spec.kind == "continuous":
            self.action += (self._low + self._high) / 2

    def set_action(self, action: np.ndarray) -> None:
        """Continue from an action of the dataset or a controller."""
        self.action = np.array(action, self.action.dtype)

    def get_action(self) -> np.ndarray:
        """Return the action of this step."""
        return self.action

    def handles(self, key: str) -> bool:
        """Return whether a key steers although the game uses it, too."""
        return False

    def release(self, key: str) -> None:
        """Ignore that a key comes up."""

    def mouse_button(self, down: bool) -> None:
        """Ignore the mouse button."""

    def lift_pointer(self) -> None:
        """Keep the target: it is a place, and not a motion."""

    def move_pointer(self, x: float, y: float) -> None:
        """Set the target, as fractions of the frame from its left and top edge, 0 to 1."""
        if self.spec.pointer:
            fraction = np.clip([x, y], 0, 1)
            self.action[:2] = self._low[:2] + fraction * (self._high - self._low)[:2]

    def press(self, key: str) -> None:
        """Handle a key: an arrow, a digit, + or -, comma or dot; ignore others."""
        if self.spec.kind == "discrete":
            self._press_discrete(key)
        elif key in ARROWS and ARROWS[key][0] < self.spec.size:
            axis, sign = ARROWS[key]
            self._move(axis, sign)
        elif key in ("+", "=", "-"):
            self._move(self.selected_axis, -1 if key == "-" else 1)
        elif key.isdigit() and 1 <= int(key) <= self.spec.size:
            self.selected_axis = int(key) - 1
        elif key in (",", "."):
            self.selected_axis = (self.selected_axis + (1 if key == "." else -1)) % self.spec.size

    @property
    def pointer(self) -> tuple[float, float] | None:
        """Target as fractions of the frame; None where actions are no points of it."""
        return pointer_position(self.spec, self.action)

    @property
    def help(self) -> str:
        if self.spec.kind == "discrete":
            digits = [f"{i + 1} {name}" for i, name in enumerate(self.spec.names[:9])]
            return "  ".join(digits + [", . others" if self.spec.size > 9 else "arrows by name"])
        if self.spec.pointer and self.spec.size == 2:
            return "mouse or arrows: target"
        steer = "mouse or arrows: target  " if self.spec.pointer else "arrows: first two  "
        return steer + f"1-{min(9, self.spec.size)} or , . choose a number  + - change it"

    def describe(self) -> str:
        """Describe the action in a few words."""
        if self.spec.kind == "discrete":
            return self.spec.names[int(self.action)]
        if self.spec.pointer and self.spec.size == 2:
            return ""  # the ring in the frame shows it
        return f"{self.spec.names[self.selected_axis]} {self.action[self.selected_axis]:.3g}"

    def _press_discrete(self, key: str) -> None:
        if key.isdigit() and 1 <= int(key) <= min(9, self.spec.size):
            self.action = np.array(int(key) - 1)
        elif key in (",", "."):
            self.action = np.array((int(self.action) + (1 if key == "." else -1)) % self.spec.size)
        elif key in ARROWS:
            names = (key, *ARROW_SYNONYMS.get(key, ()))
            matching = [i for i, n in enumerate(self.spec.names) if n.lower() in names]
            if matching:
                self.action = np.array(matching[0])

    def _move(self, axis: int, sign: int) -> None:
        low, high = self._low[axis], self._high[axis]
        moved = self.action[axis] + sign * KEY_STEP * (high - low)
        self.action[axis] = np.clip(moved, low, high)

    @property
    def _low(self) -> np.ndarray:
        return np.array(self.spec.low, np.float32)

    @property
    def _high(self) -> np.ndarray:
        return np.array(self.spec.high, np.float32)


def pointer_position(spec: ActionSpec, action: np.ndarray) -> tuple[float, float] | None:
    """Return the point of the frame that an action is, as fractions of its width and height."""
    if not spec.pointer:
        return None
    low, high = np.array(spec.low[:2]), np.array(spec.high[:2])
    x, y = (np.asarray(action)[:2] - low) / (high - low)
    return float(x), float(y)
