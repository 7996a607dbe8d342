"""Scenes of a video: where an image has nothing to do with the one before it.

Letters: T frames, H W pixels.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

SCENE_THRESHOLD = 30.0
"""Mean change of a pixel, of 255, above which a scene ends. PySceneDetect's ContentDetector has 27,
of hue, saturation and brightness."""


def scene_bounds(frames: np.ndarray, threshold: float) -> list[tuple[int, int]]:
    """Cut (T, H, W, 3) uint8 into scenes [start, stop), which hold every frame once.

    threshold: mean absolute difference of two frames in a row, of 255; 0 cuts nowhere.
    """
    if not threshold:
        return [(0, len(frames))]
    cuts = [
        at
        for at in range(1, len(frames))
        if np.abs(frames[at].astype(np.int16) - frames[at - 1]).mean() > threshold
    ]
    return list(pairwise([0, *cuts, len(frames)]))
