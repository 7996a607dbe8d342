"""Drawing of the mouse cursor of a GUI, which the recorder's videos do not show."""

from __future__ import annotations

import numpy as np

from data.opencv import require_opencv

WINDOW_HEIGHT = 720  # of the window whose pixels logs give the cursor in
CURSOR_SIZE = 16  # pixels of the cursor in a video of 640 x 360 (VPT's loader)
SUPERSAMPLING = 8
ARROW = np.array([[0, 0], [0, 12], [3, 9], [5.2, 14], [7.4, 13], [5.2, 8.3], [9, 8.3]], np.float32)


def draw_cursor(frame: np.ndarray, x: float, y: float) -> None:
    """Blend an arrow whose tip is at (x, y) of the 1280 x 720 window into (H, W, 3), in place."""
    height, width = frame.shape[:2]
    scale = height / WINDOW_HEIGHT
    left, top = round(x * scale), round(y * scale)
    x0, x1 = max(left, 0), min(left + CURSOR_SIZE, width)
    y0, y1 = max(top, 0), min(top + CURSOR_SIZE, height)
    if x0 >= x1 or y0 >= y1:
        return
    color, alpha = _arrow()
    crop = slice(y0 - top, y1 - top), slice(x0 - left, x1 - left)
    background = frame[y0:y1, x0:x1].astype(np.float32)
    blended = background + alpha[crop][..., None] * (color[crop][..., None] - background)
    frame[y0:y1, x0:x1] = blended.round().astype(np.uint8)


def _arrow() -> tuple[np.ndarray, np.ndarray]:
    """Render gray 0..255 and opacity 0..1, (S, S) each, S = CURSOR_SIZE: white with a black rim."""
    cv2 = require_opencv("the cursor of Minecraft's recordings")
    points = (ARROW * SUPERSAMPLING).round().astype(np.int32)
    fill = np.zeros((CURSOR_SIZE * SUPERSAMPLING, CURSOR_SIZE * SUPERSAMPLING), np.uint8)
    cv2.fillPoly(fill, [points], 255)
    outline = fill.copy()
    cv2.polylines(outline, [points], True, 255, SUPERSAMPLING)
    small = [
        cv2.resize(x, (CURSOR_SIZE, CURSOR_SIZE), interpolation=cv2.INTER_AREA)
        for x in (fill, outline)
    ]
    alpha = small[1].astype(np.float32) / 255
    return 255 * small[0].astype(np.float32) / np.maximum(small[1], 1), alpha
