"""Two measures of whether line i of a log belongs to frame i, and leads to frame i + 1.

Letters: N ticks, H W pixels.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from data.opencv import require_opencv
from data.vpt.vpt_actions import INPUT_COLUMN
from data.vpt.vpt_log import VptLog

NEEDS_OPENCV = "the alignment of Minecraft's recordings"
SHIFTS = (-1, 0, 1)  # ticks by which actions could be shifted against the frames
MIN_TURN = 1.0  # degrees per tick that are above the noise
MIN_ANGLE_TURNS = 20  # turns below which angles are not compared
MIN_IMAGE_TURNS = 60  # and images, in which about half of the turns are misread
ANGLE_TOLERANCE = 0.1  # degrees
IMAGE_SIZE = 64  # pixels of the images that are correlated
MARGIN = 0.1  # by which another shift must fit the images better
MIN_EXACT_SHARE = 0.9  # fraction of turns that must be exact


def angle_agreement(log: VptLog) -> dict[str, float] | None:
    """Compare the logged view with the mouse: the fraction of turns for which yaw[i + 1 + s] -
    yaw[i + s] equals the mouse's turn in line i, by shift s. None where there are too few turns."""
    if log.angles is None or len(log) < 4:
        return None
    measured = (np.diff(log.angles[:, 1]) + 180) % 360 - 180  # (N - 1,), from i to i + 1
    commanded = log.inputs[:-1, INPUT_COLUMN["yaw_degrees"]]
    gui_closed = log.inputs[:, INPUT_COLUMN["gui"]] == 0
    informative = (abs(commanded) >= MIN_TURN) & gui_closed[:-1] & gui_closed[1:]
    informative[[0, -1]] = False
    rows = np.flatnonzero(informative)
    if len(rows) < MIN_ANGLE_TURNS:
        return None
    return {
        f"{s:+d}": round(
            float((abs(measured[rows + s] - commanded[rows]) < ANGLE_TOLERANCE).mean()), 4
        )
        for s in SHIFTS
    }


def image_agreement(
    frames: np.ndarray, inputs: np.ndarray, shown: np.ndarray | None = None
) -> dict[str, float] | None:
    """Compare image motion with the mouse: correlation of the yaw of line i with the displacement
    from frame i + s to frame i + 1 + s, by shift s. None where there are too few turns.

    frames: (N, H, W, 3) uint8; inputs: (N, I); shown: (N,) bool, False where a frame is missing.
    """
    commanded = inputs[:-1, INPUT_COLUMN["yaw_degrees"]].astype(np.float64)
    gui_closed = inputs[:, INPUT_COLUMN["gui"]] == 0
    informative = (abs(commanded) >= MIN_TURN) & gui_closed[:-1] & gui_closed[1:]
    informative[[0, -1]] = False
    if shown is not None:  # frames i - 1 to i + 2 are compared
        for row in np.flatnonzero(~shown):
            informative[max(0, row - 2) : row + 2] = False
    rows = np.flatnonzero(informative)[:500]  # enough for a correlation
    if len(rows) < MIN_IMAGE_TURNS:
        return None
    cv2 = require_opencv(NEEDS_OPENCV)
    hanning = cv2.createHanningWindow((IMAGE_SIZE, IMAGE_SIZE), cv2.CV_32F)
    image_shift = {}
    for row in sorted({int(r + s) for r in rows for s in SHIFTS}):
        pair = (_normalized_gray(frames[row]), _normalized_gray(frames[row + 1]))
        image_shift[row] = cv2.phaseCorrelate(*pair, hanning)[0][0]
    correlation = {}
    for s in SHIFTS:
        # turning right moves the image to the left; signs, so that no outlier decides
        directions = np.sign([-image_shift[int(r + s)] for r in rows])
        correlation[f"{s:+d}"] = round(float((directions * np.sign(commanded[rows])).mean()), 4)
    return correlation


def warnings(notes: dict[str, Any]) -> list[str]:
    """Return a warning for each measure that contradicts the alignment of a recording."""
    messages = []
    for key, what in (("angles", "the logged view"), ("images", "the image")):
        found = notes.get(key)
        if not found:
            continue
        minimum = MIN_EXACT_SHARE if key == "angles" else max(found.values()) - MARGIN
        if found["+0"] < minimum:
            by_shift = ", ".join(f"{value:.2f} at {shift}" for shift, value in found.items())
            messages.append(
                f"{notes['recording']}: {what} does not turn with the mouse ({by_shift} ticks); "
                f"frames and lines seem to be shifted, check it before training"
            )
    return messages


def _normalized_gray(frame: np.ndarray) -> np.ndarray:
    """Shrink to gray with mean 0 and std 1, as many scenes are dark: (S, S) float32,
    S = IMAGE_SIZE."""
    cv2 = require_opencv(NEEDS_OPENCV)
    small = cv2.resize(frame, (IMAGE_SIZE, IMAGE_SIZE), interpolation=cv2.INTER_AREA)
    gray = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).astype(np.float32)
    return (gray - gray.mean()) / (gray.std() + 1e-3)
