"""Does line i of a log belong to frame i, and lead to frame i + 1? Told in two ways.

Letters: N ticks, H W pixels.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from data.vpt.vpt_actions import COLUMN
from data.vpt.vpt_log import Log

SHIFTS = (-1, 0, 1)  # ticks by which actions could lie beside the frames
LEAST_TURN = 1.0  # degrees of a tick that can be told from noise
LEAST_TICKS = 20  # turns below which nothing is said of angles
LEAST_SLIDES = 60  # and of pictures, in which every second one is misread
EXACT = 0.1  # degrees
SIDE = 64  # pixels of the pictures that are laid over each other
MARGIN = 0.1  # by which another shift must fit the picture better
ENOUGH = 0.9  # share of turns that must be exact; 0.996 of large ones are in the public logs


def angles_agree(log: Log) -> dict[str, float] | None:
    """The recorded view against the mouse: the share of turns for which yaw[i + 1 + s] - yaw[i + s]
    is what the mouse of line i asks for, by shift s. None where too little turns."""
    if log.angles is None or len(log) < 4:
        return None
    turned = (np.diff(log.angles[:, 1]) + 180) % 360 - 180  # (N - 1,), from i to i + 1
    asked = log.inputs[:-1, COLUMN["yaw_degrees"]]
    closed = log.inputs[:, COLUMN["gui"]] == 0
    tells = (abs(asked) >= LEAST_TURN) & closed[:-1] & closed[1:]
    tells[[0, -1]] = False
    rows = np.flatnonzero(tells)
    if len(rows) < LEAST_TICKS:
        return None
    return {
        f"{s:+d}": round(float((abs(turned[rows + s] - asked[rows]) < EXACT).mean()), 4)
        for s in SHIFTS
    }


def images_agree(frames: np.ndarray, inputs: np.ndarray) -> dict[str, float] | None:
    """The picture's motion against the mouse: correlation of the yaw of line i with how far frame
    i + 1 + s has slid from frame i + s, by shift s. None where too little turns.

    frames: (N, H, W, 3) uint8; inputs: (N, I).
    """
    asked = inputs[:-1, COLUMN["yaw_degrees"]].astype(np.float64)
    closed = inputs[:, COLUMN["gui"]] == 0
    tells = (abs(asked) >= LEAST_TURN) & closed[:-1] & closed[1:]
    tells[[0, -1]] = False
    rows = np.flatnonzero(tells)[:500]  # enough to tell, and soon done
    if len(rows) < LEAST_SLIDES:
        return None
    window = cv2.createHanningWindow((SIDE, SIDE), cv2.CV_32F)
    slid = {}
    for row in sorted({int(r + s) for r in rows for s in SHIFTS}):
        pair = (_plain(frames[row]), _plain(frames[row + 1]))
        slid[row] = cv2.phaseCorrelate(*pair, window)[0][0]
    found = {}
    for s in SHIFTS:
        # turning right slides the picture to the left; one wild estimate must not decide
        ways = np.sign([-slid[int(r + s)] for r in rows])
        found[f"{s:+d}"] = round(float((ways * np.sign(asked[rows])).mean()), 4)
    return found


def warnings(notes: dict[str, Any]) -> list[str]:
    """Say which of a recording's agreements speak against its alignment."""
    said = []
    for key, what in (("angles", "the recorded view"), ("images", "the picture")):
        found = notes.get(key)
        if not found:
            continue
        least = ENOUGH if key == "angles" else max(found.values()) - MARGIN
        if found["+0"] < least:
            beside = ", ".join(f"{value:.2f} at {shift}" for shift, value in found.items())
            said.append(
                f"{notes['recording']}: {what} does not turn with the mouse ({beside} ticks); "
                f"frames and lines seem to be shifted, look at it before training"
            )
    return said


def _plain(frame: np.ndarray) -> np.ndarray:
    """Grey, of mean 0 and deviation 1, since many scenes are dark: (SIDE, SIDE) float32."""
    small = cv2.resize(frame, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    grey = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).astype(np.float32)
    return (grey - grey.mean()) / (grey.std() + 1e-3)
