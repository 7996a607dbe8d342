"""Import of arrays: an HDF5 file, .npy files, or a folder of .npz; actions are optional.

Letters: N episodes, T steps, H W pixels, A numbers of an action.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from data.actions import ActionSpec
from data.array_files import OPTIONAL_KEYS, RawEpisodes, read_raw
from data.episodes import STEP_DTYPES, Episode

Layout = Literal["auto", "CHW", "HWC"]
BYTES_PER_SHARD = 64 * 2**20
MAX_CODES = 2**16


@dataclass(frozen=True)
class ArraysInfo:
    """What is known of the data before all frames are read."""

    raw: RawEpisodes
    image_size: tuple[int, int]
    layout: Layout
    actions: ActionSpec
    optional: tuple[str, ...]
    state_dim: int  # numbers in a state


@dataclass(frozen=True)
class ArraySource:
    """A source of imported episodes; each episode is a source of its own.

    Frames are uint8, or numbers from 0 to 255 after multiplication by `scale`. Whole-number actions
    (N, T) are codes from 0 to the largest; those of (N, T, A) are continuous, between the smallest
    and the largest value of each dimension. Without an array of actions, episodes have none.
    """

    path: str
    layout: Layout = "auto"
    scale: float = 1.0

    @property
    def num_sources(self) -> int:
        return len(self._info().raw.lengths)

    @property
    def num_shards(self) -> int:
        return len(self._episodes_by_shard())

    def description(self) -> dict[str, Any]:
        info = self._info()
        return {
            "source": "arrays",
            "image_size": list(info.image_size),
            "actions": info.actions.as_dict(),
            "state_names": [f"state_{i}" for i in range(info.state_dim)],
            "settings": asdict(self) | {"path": Path(self.path).name},
        }

    def make_shard(self, index: int) -> list[Episode]:
        return [self.episode(number) for number in self._episodes_by_shard()[index]]

    def episode(self, number: int) -> Episode:
        info = self._info()
        raw = info.raw
        where = raw.location(number)
        frames = raw.read(number, "frames")
        channel_axis = 1 if info.layout == "CHW" else 3
        if frames.ndim != 4 or frames.shape[channel_axis] != 3:
            raise ValueError(
                f"{where} has frames of {frames.shape[1:]}, but the first episode's are "
                f"{info.layout} with 3 colors; use one layout for all"
            )
        frames = _to_uint8(frames, self.scale, where)
        if info.layout == "CHW":
            frames = frames.transpose(0, 2, 3, 1)
        if frames.shape[1:3] != info.image_size:
            raise ValueError(
                f"{where} has frames of {frames.shape[1]} x {frames.shape[2]} pixels, and the "
                f"first episode of {info.image_size[0]} x {info.image_size[1]}; resize them to "
                f"one size"
            )
        actions = _read_actions(info, number, len(frames))
        extra: dict[str, Any] = {
            name: self._optional_array(info, number, name, len(frames)) for name in info.optional
        }
        return Episode(
            frames=np.ascontiguousarray(frames),
            actions=actions,
            source=number,
            **extra,
        )

    def _optional_array(self, info: ArraysInfo, number: int, name: str, length: int) -> np.ndarray:
        where, values = info.raw.location(number), info.raw.read(number, name)
        shape = (length, info.state_dim) if name == "states" else (length,)
        if values.shape != shape or values.dtype.kind not in "biuf":
            raise ValueError(
                f"{where} has {name} of {values.dtype} {values.shape}, but {length} frames need "
                f"numbers of {shape}; correct or remove that array"
            )
        if not np.isfinite(values).all():
            raise ValueError(f"{where} has NaN or infinity in its {name}; remove such steps")
        return values.astype(STEP_DTYPES[name])

    def _info(self) -> ArraysInfo:
        return _read_info(Path(self.path), self.layout, self.scale)

    def _episodes_by_shard(self) -> list[list[int]]:
        """Group the episodes into shards of at most BYTES_PER_SHARD, or of one episode."""
        info = self._info()
        height, width = info.image_size
        groups: list[list[int]] = [[]]
        size = 0
        for number, length in enumerate(info.raw.lengths):
            if groups[-1] and size + length * height * width * 3 > BYTES_PER_SHARD:
                groups.append([])
                size = 0
            groups[-1].append(number)
            size += length * height * width * 3
        return groups


def _read_actions(info: ArraysInfo, number: int, length: int) -> np.ndarray | None:
    if info.actions.kind == "none":
        return None
    actions = info.raw.read(number, "actions")
    if len(actions) != length:
        raise ValueError(
            f"{info.raw.location(number)} has {length} frames but {len(actions)} actions; one "
            f"action per frame is needed (the last one leads nowhere)"
        )
    return actions.astype(np.int64 if info.actions.kind == "discrete" else np.float32)


@lru_cache(maxsize=2)
def _read_info(path: Path, layout: Layout, scale: float) -> ArraysInfo:
    raw = read_raw(path)
    if "frames" not in raw.keys:
        raise ValueError(
            f"{path} has no frames (it holds {', '.join(sorted(raw.keys)) or 'nothing'}); "
            f"an array of that name is needed"
        )
    if "actions" not in raw.keys and "action" in raw.keys:  # else it would be ignored
        raise ValueError(f"{path} has no actions, but an array 'action'; rename it to 'actions'")
    if not raw.lengths:
        raise ValueError(f"{path} holds no episodes; at least one is needed")
    if 0 in raw.lengths:
        where = raw.location(raw.lengths.index(0))
        raise ValueError(f"{where} has 0 steps; remove it, or get the file again")
    first = raw.read(0, "frames")
    layout = _infer_layout(first.shape, layout, raw.location(0))
    _to_uint8(first, scale, raw.location(0))
    height, width = first.shape[2:4] if layout == "CHW" else first.shape[1:3]
    optional = tuple(name for name in OPTIONAL_KEYS if name in raw.keys)
    states = raw.read(0, "states").shape[1:] if "states" in optional else (0,)
    if len(states) != 1:
        raise ValueError(f"{raw.location(0)} has states of {states} a step; (S,) is needed")
    return ArraysInfo(
        raw, (int(height), int(width)), layout, _infer_action_spec(raw), optional, int(states[0])
    )


def _infer_layout(shape: tuple[int, ...], layout: Layout, where: str) -> Layout:
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


def _to_uint8(frames: np.ndarray, scale: float, where: str) -> np.ndarray:
    """Scale frames to uint8; ValueError where they do not fit 0 to 255."""
    if frames.dtype == np.uint8 and scale == 1:
        return frames
    if frames.dtype.kind not in "biuf":
        raise ValueError(f"{where} has frames of {frames.dtype}; uint8 or floats are needed")
    if frames.size == 0:
        raise ValueError(f"{where} has frames of {frames.shape}, which hold no pixels; remove it")
    values = frames.astype(np.float32) * scale
    if not np.isfinite(values).all():
        raise ValueError(f"{where} has NaN or infinity in its frames; remove such frames")
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


def _infer_action_spec(raw: RawEpisodes) -> ActionSpec:
    """Derive the action space from all actions, one episode in memory at a time."""
    if "actions" not in raw.keys:
        return ActionSpec("none", ())
    shapes: dict[tuple[bool, tuple[int, ...]], int] = {}
    lows, highs = [], []
    for number in range(len(raw.lengths)):
        values, where = raw.read(number, "actions"), raw.location(number)
        is_integer = values.dtype.kind in "biu"
        if (
            not (values.ndim == 2 or (values.ndim == 1 and is_integer))
            or values.dtype.kind not in "biuf"
        ):
            raise ValueError(
                f"{where} has actions of {values.dtype} {values.shape[1:]} a step; whole numbers "
                f"or (A,) floats are needed"
            )
        shapes.setdefault((values.ndim == 1, values.shape[1:]), number)
        if len(shapes) > 1:
            other = next(iter(shapes.values()))
            raise ValueError(
                f"{where} has actions of {values.shape[1:]} a step, and {raw.location(other)} of "
                f"{next(iter(shapes))[1]}; all must have one shape"
            )
        if not np.isfinite(values).all():
            raise ValueError(f"{where} has NaN or infinity in its actions; remove such steps")
        if values.ndim == 2:
            values = values.astype(np.float32)  # as in the shards
        lows.append(values.min(0))
        highs.append(values.max(0))
    low, high = np.min(lows, 0), np.max(highs, 0)
    if low.ndim == 0:
        if low < 0 or high >= MAX_CODES:
            first = int(np.argmin(lows) if low < 0 else np.argmax(highs))
            raise ValueError(
                f"{raw.location(first)} has the action code {int(low if low < 0 else high)}; codes "
                f"start at 0 and end below {MAX_CODES}: renumber them"
            )
        return ActionSpec("discrete", tuple(str(code) for code in range(int(high) + 1)))
    high = np.where(high > low, high, low + 1)  # a dimension that never changes
    names = tuple(f"action_{i}" for i in range(len(low)))
    return ActionSpec("continuous", names, tuple(map(float, low)), tuple(map(float, high)))
