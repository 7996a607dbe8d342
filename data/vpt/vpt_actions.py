"""Encode a Minecraft player's keys and mouse as one discrete code per tick.

Letters: N ticks, I inputs, M bins of a camera axis.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from data.actions import ActionSpec, Factor
from data.ranges import CheckedConfig, Range

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
"""Keys of the recorder, and MineRL's names for them."""
MOUSE_BUTTONS = ("attack", "use", "pickItem")
"""Mouse buttons 0, 1, 2."""
BUTTONS = (*dict.fromkeys(KEYS.values()), *MOUSE_BUTTONS)
INPUT_NAMES = (*BUTTONS, "pitch_degrees", "yaw_degrees", "gui")
"""Inputs of a tick: 1 for a held key or button, camera turns in degrees, 1 for an open GUI."""
INPUT_COLUMN = {name: column for column, name in enumerate(INPUT_NAMES)}
CAMERA_SCALER = 360 / 2400
"""Degrees of camera turn per unit of the recorder's mouse."""

MOVES = ("none", "forward", "left", "back", "right",
         "forward left", "forward right", "back left", "back right")  # fmt: skip
# rows: back, none, forward; columns: right, none, left; opposite keys cancel
_MOVE_TABLE = np.array([[8, 3, 7], [4, 0, 2], [6, 1, 5]])


@dataclass(frozen=True)
class CameraQuantizer(CheckedConfig):
    """Quantize degrees into M bins: mu-law companding (VPT, appendix C.2), symmetric around 0.

    A mu of 0 gives uniform bins.
    """

    maxval: Annotated[float, Range(above=0, high=180)] = 10.0
    """Degrees of the outermost bins, to which larger turns are clipped."""
    num_bins: Annotated[int, Range(11, 11)] = 11
    """Odd: the middle bin is no turn."""
    mu: Annotated[float, Range(0, 10**6)] = 10.0

    def check(self) -> None:
        super().check()
        if len(set(self.bin_centers)) < self.num_bins:
            raise ValueError(
                f"--camera-maxval {self.maxval} and --camera-mu {self.mu} give bins that are equal "
                f"to a ten-thousandth of a degree; raise the first or lower the second"
            )

    def discretize(self, degrees: np.ndarray) -> np.ndarray:
        """Quantize (...) degrees into (...) int64 bins in [0, M)."""
        fraction = np.clip(np.asarray(degrees, np.float64) / self.maxval, -1, 1)
        if self.mu:
            fraction = np.sign(fraction) * np.log1p(self.mu * abs(fraction)) / np.log1p(self.mu)
        half = self.num_bins // 2
        # rounds away from 0 on both sides, so that opposite turns are symmetric
        return half + (np.sign(fraction) * np.floor(abs(fraction) * half + 0.5)).astype(np.int64)

    @property
    def bin_centers(self) -> tuple[float, ...]:
        """Degrees of the bin centers: (M,)."""
        half = self.num_bins // 2
        fraction = np.arange(-half, half + 1) / half
        if self.mu:
            fraction = np.sign(fraction) * np.expm1(abs(fraction) * np.log1p(self.mu)) / self.mu
        return tuple(round(float(v), 4) + 0.0 for v in self.maxval * fraction)


def action_spec(quantizer: CameraQuantizer) -> ActionSpec:
    """Return the space of codes 0 to 4355: yaw + 11 pitch + 121 attack + 242 jump + 484 move."""
    labels = tuple(f"{degrees:+.1f}" if degrees else "0" for degrees in quantizer.bin_centers)
    return ActionSpec(
        "discrete",
        (),
        unit="degrees of the camera",
        factors=(
            Factor("yaw", labels, quantizer.bin_centers),
            Factor("pitch", labels, quantizer.bin_centers),
            Factor("attack", ("none", "attack")),
            Factor("jump", ("none", "jump")),
            Factor("move", MOVES),
        ),
    )


def encode(inputs: np.ndarray, quantizer: CameraQuantizer) -> np.ndarray:
    """Encode inputs (N, I) as codes (N,) int64.

    Codes drop use, sneak, sprint, drop, inventory and hotbar. With an open GUI, camera turns move
    its cursor.
    """
    inputs = np.asarray(inputs)
    yaw = quantizer.discretize(inputs[:, INPUT_COLUMN["yaw_degrees"]])
    pitch = quantizer.discretize(inputs[:, INPUT_COLUMN["pitch_degrees"]])
    pressed = {name: inputs[:, INPUT_COLUMN[name]] > 0 for name in BUTTONS}
    along = pressed["forward"].astype(np.int64) - pressed["back"]
    across = pressed["left"].astype(np.int64) - pressed["right"]
    move = _MOVE_TABLE[along + 1, across + 1]
    choices = [yaw, pitch, pressed["attack"], pressed["jump"], move]
    return action_spec(quantizer).ravel(np.stack(choices, -1).astype(np.int64))


def decode(codes: np.ndarray, quantizer: CameraQuantizer) -> np.ndarray:
    """Decode codes (N,) into inputs (N, I) float32."""
    codes = np.asarray(codes)
    invalid = codes[(codes < 0) | (codes > 4355)]
    if invalid.size:
        raise ValueError(f"action codes must be between 0 and 4355; got {invalid[0]}")
    yaw, pitch, attack, jump, move = action_spec(quantizer).unravel(codes).T
    inputs = np.zeros((len(codes), len(INPUT_NAMES)), np.float32)
    bin_centers = np.array(quantizer.bin_centers)
    inputs[:, INPUT_COLUMN["yaw_degrees"]] = bin_centers[yaw]
    inputs[:, INPUT_COLUMN["pitch_degrees"]] = bin_centers[pitch]
    inputs[:, INPUT_COLUMN["attack"]], inputs[:, INPUT_COLUMN["jump"]] = attack, jump
    for name in ("forward", "back", "left", "right"):
        inputs[:, INPUT_COLUMN[name]] = [name in MOVES[m].split() for m in move]
    return inputs
