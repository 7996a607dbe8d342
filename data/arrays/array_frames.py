"""Frames of imported arrays: which axis holds the colors, and how numbers become 0 to 255."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import numpy as np

from data.arrays.finite_steps import WAY_OUT
from data.opencv import resize_area

Layout = Literal["auto", "CHW", "HWC"]
PROBED = 8  # episodes whose frames are looked at before any is imported


def infer_layout(shape: tuple[int, ...], layout: Layout, where: str) -> Layout:
    """Find the color axis of the frames; ValueError where both could be it."""
    if len(shape) != 4:
        raise ValueError(f"{where} has frames of shape {shape}; (T, C, H, W) or (T, H, W, C)")
    first, last = shape[1] == 3, shape[3] == 3
    if layout == "auto":
        if first and last:
            raise ValueError(
                f"{where}: frames of {shape[1:]} could be (C, H, W) or (H, W, C); give --layout "
                f"CHW or --layout HWC"
            )
        layout = "CHW" if first else "HWC"
    if not (first if layout == "CHW" else last):
        raise ValueError(
            f"{where}: frames of {shape[1:]} have no axis of 3 colors as {layout}; store RGB, or "
            f"correct --layout"
        )
    return layout


def to_uint8(frames: np.ndarray, scale: float, where: str) -> np.ndarray:
    """Scale frames to uint8; ValueError where they do not fit 0 to 255."""
    if frames.dtype == np.uint8 and scale == 1:
        return frames
    if frames.dtype.kind not in "biuf":
        raise ValueError(f"{where} has frames of {frames.dtype}; uint8 or floats are needed")
    if frames.size == 0:
        raise ValueError(f"{where} has frames of {frames.shape}, which hold no pixels; remove it")
    values = frames.astype(np.float32) * scale
    if not np.isfinite(values).all():
        step = int(np.argwhere(~np.isfinite(values))[0][0])
        raise ValueError(f"{where} has NaN or infinity in its frames at step {step}; {WAY_OUT}")
    low, high = values.min(), values.max()
    if frames.dtype.kind == "f" and scale == 1 and low >= -0.5 and 0 < high <= 2:
        raise ValueError(
            f"{where} has frames from {low:.3g} to {high:.3g}, which look like fractions; give "
            f"--scale 255"
        )
    if low < -0.5 or high > 255.5:
        if low < -0.5:
            fix = "shift them before the import"
        else:
            fix = f"--scale {scale:g} is too large" if scale != 1 else "give a --scale below 1"
        raise ValueError(
            f"{where} has frames from {low:.6g} to {high:.6g}, but 0 to 255 is needed; {fix}"
        )
    return values.round().clip(0, 255).astype(np.uint8)


def resize_frames(frames: np.ndarray, side: int) -> np.ndarray:
    """Average (T, H, W, 3) uint8 over areas: (T, side, side, 3); the aspect ratio is not kept."""
    return np.stack([resize_area(np.ascontiguousarray(frame), side) for frame in frames])


def describe_frames(probed: Iterable[tuple[np.ndarray, str]], scale: float) -> str:
    """Say how frames are taken, by those (T, ...) of some episodes, each with where it is from.

    Empty where they are taken as they are. ValueError where all would become black.
    """
    before, after, count, dtype, first = 0.0, 0, 0, np.dtype(np.uint8), ""
    for frames, where in probed:
        after = max(after, int(to_uint8(frames, scale, where).max()))
        before = max(before, float(frames.max()))
        dtype, first, count = frames.dtype, first or where, count + 1
    if before > 0 and after <= 1:
        if scale == 1:
            raise ValueError(
                f"{first} has frames of {dtype} from 0 to {before:g}, as have the others, which "
                f"would be black; give --scale 255"
            )
        raise ValueError(
            f"--scale {scale:g} makes the frames of {first} black: {before:g} becomes {after} of "
            f"255; give a greater one"
        )
    if after == 0:
        return f"warning: all frames of {count} episodes that were looked at are black"
    if dtype == np.uint8 and scale == 1:
        return ""
    times = "" if scale == 1 else f", times {scale:g}"
    return f"frames of {dtype} up to {before:g}{times}: rounded, at most {after} of 255"
