"""OpenCV where it can be loaded: servers often lack the libraries that it needs (libGL)."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np


def require_opencv(purpose: str) -> Any:
    """Return the module cv2; ValueError says what needs it (`purpose`), and the way out."""
    cv2, problem = _load()
    if cv2 is None:
        raise ValueError(
            f"{purpose} needs OpenCV, which cannot be loaded here ({problem}); install its "
            f"libraries (Debian, Ubuntu: apt-get install libgl1 libglib2.0-0), or the package "
            f"opencv-python-headless in place of opencv-python"
        )
    return cv2


@contextmanager
def opencv_or_stub() -> Iterator[None]:
    """Import in here a package that imports OpenCV for what is not used of it."""
    if _load()[0] is not None:
        yield
        return
    sys.modules["cv2"] = ModuleType("cv2")
    try:
        yield
    finally:
        del sys.modules["cv2"]


def resize_area(image: np.ndarray, side: int) -> np.ndarray:
    """Scale (H, W, C) uint8 to (side, side, C), each pixel the mean of the area that it covers.

    OpenCV's INTER_AREA; where it cannot be loaded NumPy gives the same pixels, more slowly.
    """
    cv2, _ = _load()
    if cv2 is not None:
        return cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
    return _resize_area(image, side)


def _resize_area(image: np.ndarray, side: int) -> np.ndarray:
    height, width, channels = image.shape
    if height == width == 2 * side:  # OpenCV rounds these halves up, and others to even
        sums = image.reshape(side, 2, side, 2, channels).sum((1, 3), dtype=np.uint16)
        return ((sums + 2) >> 2).astype(np.uint8)
    rows = _overlap(height, side) @ image.reshape(height, -1).astype(np.float32)
    columns = rows.reshape(side, width, channels).transpose(1, 0, 2).reshape(width, -1)
    scaled = (_overlap(width, side) @ columns).reshape(side, side, channels)
    return np.rint(scaled).astype(np.uint8).transpose(1, 0, 2)


@cache
def _overlap(length: int, parts: int) -> np.ndarray:
    """(parts, length): the share of each pixel in each part of a line; rows sum to one."""
    edges = np.arange(parts + 1) * (length / parts)
    pixels = np.arange(length)
    low = np.maximum(edges[:-1, None], pixels)
    high = np.minimum(edges[1:, None], pixels + 1)
    return (np.clip(high - low, 0, None) * (parts / length)).astype(np.float32)


@cache
def _load() -> tuple[Any, str]:
    """Return the module, or None and why not."""
    try:
        import cv2
    except ImportError as problem:
        sys.modules.pop("cv2", None)
        return None, str(problem)
    return cv2, ""
