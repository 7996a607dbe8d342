"""What a Minecraft player's keys and mouse mean: the inputs of a tick, and one code for them.

Letters: N ticks, I inputs, M choices of the camera on an axis.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data.actions import ActionSpec, Factor

KEYS = {
    "key.keyboard.w": "forward",
    "key.keyboard.s": "back",
    "key.keyboard.a": "left",
    "key.keyboard.d": "right",
    "key.keyboard.space": "jump",
    "key.keyboard.left.shift": "sneak",
    "key.keyboard.left.control": "sprint",
    "key.keyboard.q": "drop",
    "key.keyboard.e": "inventory",
    "key.keyboard.f": "swapHands",
    "key.keyboard.escape": "ESC",
    **{f"key.keyboard.{n}": f"hotbar.{n}" for n in range(1, 10)},
}
"""Keys of the recorder, and MineRL's names of what they do."""
BUTTONS = ("attack", "use", "pickItem")
"""Mouse buttons 0, 1, 2."""
HELD = (*dict.fromkeys(KEYS.values()), *BUTTONS)
INPUT_NAMES = (*HELD, "pitch_degrees", "yaw_degrees", "gui")
"""Inputs of a tick: 1 for what is held, degrees that the camera turns, 1 with a GUI open."""
COLUMN = {name: column for column, name in enumerate(INPUT_NAMES)}
DEGREES = 360 / 2400
"""Degrees that the camera turns for a unit of the recorder's mouse."""

MOVES = ("none", "forward", "left", "back", "right",
         "forward left", "forward right", "back left", "back right")  # fmt: skip
# The move for (back, none, forward) and (right, none, left); opposite keys cancel.
_MOVE = np.array([[8, 3, 7], [4, 0, 2], [6, 1, 5]])


@dataclass(frozen=True)
class Binning:
    """How degrees become one of M choices: mu-law companding (VPT, appendix C.2) around zero.

    A uniform grid is a mu of 0.
    """

    limit: float = 10.0
    """Degrees of the outermost choices, and of all that is beyond."""
    choices: int = 11
    """Odd: the middle one is not to turn."""
    mu: float = 10.0

    def __post_init__(self) -> None:
        if self.choices != 11 or self.limit <= 0 or self.mu < 0:
            raise ValueError(
                f"a camera of {self.choices} choices up to {self.limit} degrees with mu {self.mu} "
                f"does not fit codes of 0 to 4355; they take 11 choices, a limit above 0 and a mu "
                f"of 0 or more"
            )

    def choose(self, degrees: np.ndarray) -> np.ndarray:
        """(...) degrees -> (...) int64 in [0, M)."""
        share = np.clip(np.asarray(degrees, np.float64) / self.limit, -1, 1)
        if self.mu:
            share = np.sign(share) * np.log1p(self.mu * abs(share)) / np.log1p(self.mu)
        half = self.choices // 2
        # from zero outwards on both sides, so that a turn and its opposite are alike
        return half + (np.sign(share) * np.floor(abs(share) * half + 0.5)).astype(np.int64)

    @property
    def centres(self) -> tuple[float, ...]:
        """Degrees that the choices stand for: (M,)."""
        half = self.choices // 2
        share = np.arange(-half, half + 1) / half
        if self.mu:
            share = np.sign(share) * np.expm1(abs(share) * np.log1p(self.mu)) / self.mu
        return tuple(round(float(v), 4) + 0.0 for v in self.limit * share)


def action_spec(binning: Binning) -> ActionSpec:
    """Codes 0 to 4355: yaw + 11 pitch + 121 attack + 242 jump + 484 move (docs/minecraft.md)."""
    turns = tuple(f"{degrees:+.1f}" if degrees else "0" for degrees in binning.centres)
    return ActionSpec(
        "discrete",
        (),
        unit="degrees of the camera",
        factors=(
            Factor("yaw", turns, binning.centres),
            Factor("pitch", turns, binning.centres),
            Factor("attack", ("none", "attack")),
            Factor("jump", ("none", "jump")),
            Factor("move", MOVES),
        ),
    )


def encode(inputs: np.ndarray, binning: Binning) -> np.ndarray:
    """Inputs, (N, I) -> codes, (N,) int64. What a code has no place for is left out: use, sneak,
    sprint, drop, inventory, hotbar. With a GUI open the camera's turns move its cursor."""
    inputs = np.asarray(inputs)
    yaw = binning.choose(inputs[:, COLUMN["yaw_degrees"]])
    pitch = binning.choose(inputs[:, COLUMN["pitch_degrees"]])
    held = {name: inputs[:, COLUMN[name]] > 0 for name in HELD}
    along = held["forward"].astype(np.int64) - held["back"]
    across = held["left"].astype(np.int64) - held["right"]
    move = _MOVE[along + 1, across + 1]
    choices = [yaw, pitch, held["attack"], held["jump"], move]
    return action_spec(binning).join(np.stack(choices, -1).astype(np.int64))


def decode(codes: np.ndarray, binning: Binning) -> np.ndarray:
    """Codes, (N,) -> the inputs that they stand for, (N, I) float32."""
    codes = np.asarray(codes)
    if codes.size and not 0 <= codes.min() <= codes.max() <= 4355:
        raise ValueError(f"codes of actions go from 0 to 4355; {codes} reaches outside")
    yaw, pitch, attack, jump, move = action_spec(binning).split(codes).T
    inputs = np.zeros((len(codes), len(INPUT_NAMES)), np.float32)
    centres = np.array(binning.centres)
    inputs[:, COLUMN["yaw_degrees"]] = centres[yaw]
    inputs[:, COLUMN["pitch_degrees"]] = centres[pitch]
    inputs[:, COLUMN["attack"]], inputs[:, COLUMN["jump"]] = attack, jump
    for name in ("forward", "back", "left", "right"):
        inputs[:, COLUMN[name]] = [name in MOVES[m].split() for m in move]
    return inputs
