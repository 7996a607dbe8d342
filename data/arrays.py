"""Recordings from elsewhere: an HDF5 file, .npy pairs, or a folder of .npz.

Letters: N episodes, T steps, H W pixels, A numbers of an action.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import h5py
import hdf5plugin  # noqa: F401
import numpy as np

from data.actions import ActionSpec
from data.episodes import STEP_DTYPES, Episode

Layout = Literal["auto", "CHW", "HWC"]
BYTES_PER_SHARD = 64 * 2**20
OPTIONAL_KEYS = ("rewards", "terminals", "states", "contacts")
MAX_CODES = 2**16
READ_ERRORS = (zipfile.BadZipFile, zlib.error, ValueError, EOFError, OSError)


@dataclass(frozen=True)
class RawEpisodes:
    """Episodes as they lie in files, nothing of them understood yet."""

    lengths: tuple[int, ...]
    keys: frozenset[str]
    read: Callable[[int, str], np.ndarray]  # (episode, field) -> (T, ...)
    location: Callable[[int], str]  # an episode, in words that name its file


@dataclass(frozen=True)
class ArraysInfo:
    """What is known of the recordings before all frames are read."""

    raw: RawEpisodes
    image_size: tuple[int, int]
    layout: Layout
    actions: ActionSpec
    optional: tuple[str, ...]
    state_dim: int  # numbers in a state


@dataclass(frozen=True)
class ArraySource:
    """A source of imported episodes; each is a source of its own.

    Frames are uint8, or numbers of 0 to 255 once multiplied by `scale`. Whole-number actions
    (N, T) are codes of 0 to the largest; those of (N, T, A) are continuous, between the smallest
    and the largest value of each dimension.
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
                f"{info.layout} with 3 colours; store all in one way"
            )
        frames = _to_uint8(frames, self.scale, where)
        if info.layout == "CHW":
            frames = frames.transpose(0, 2, 3, 1)
        if frames.shape[1:3] != info.image_size:
            raise ValueError(
                f"{where} has frames of {frames.shape[1]} x {frames.shape[2]} pixels, and the "
                f"first episode of {info.image_size[0]} x {info.image_size[1]}; make them one "
                f"size"
            )
        actions = raw.read(number, "actions")
        if len(actions) != len(frames):
            raise ValueError(
                f"{where} has {len(frames)} frames but {len(actions)} actions; there is one action "
                f"for each frame (the last leads nowhere)"
            )
        dtype = np.int64 if info.actions.kind == "discrete" else np.float32
        extra: dict[str, Any] = {
            name: self._optional_array(info, number, name, len(frames)) for name in info.optional
        }
        return Episode(
            frames=np.ascontiguousarray(frames),
            actions=actions.astype(dtype),
            source=number,
            **extra,
        )

    def _optional_array(self, info: ArraysInfo, number: int, name: str, length: int) -> np.ndarray:
        where, values = info.raw.location(number), info.raw.read(number, name)
        shape = (length, info.state_dim) if name == "states" else (length,)
        if values.shape != shape or values.dtype.kind not in "biuf":
            raise ValueError(
                f"{where} has {name} of {values.dtype} {values.shape}, but {length} frames need "
                f"numbers of {shape}; mend or leave out that array"
            )
        if not np.isfinite(values).all():
            raise ValueError(f"{where} has NaN or infinity in its {name}; leave such steps out")
        return values.astype(STEP_DTYPES[name])

    def _info(self) -> ArraysInfo:
        return _read_info(Path(self.path), self.layout, self.scale)

    def _episodes_by_shard(self) -> list[list[int]]:
        """Episodes of each shard: what is in memory at once."""
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


@lru_cache(maxsize=2)
def _read_info(path: Path, layout: Layout, scale: float) -> ArraysInfo:
    raw = _read_raw(path)
    for name in ("frames", "actions"):
        if name not in raw.keys:
            raise ValueError(
                f"{path} has no {name} (it holds {', '.join(sorted(raw.keys)) or 'nothing'}); "
                f"an array of that name is needed"
            )
    if not raw.lengths:
        raise ValueError(f"{path} holds no episode; give a file with some")
    if 0 in raw.lengths:
        where = raw.location(raw.lengths.index(0))
        raise ValueError(f"{where} has 0 steps; leave it out, or get the file again")
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


def _read_raw(path: Path) -> RawEpisodes:
    if path.is_dir() and (files := sorted(path.glob("*.npz"))):
        return _from_npz(files)
    pair = _npy_files(path)
    if pair:
        return _from_stacked({name: _load_npy(file) for name, file in pair.items()}, path)
    if path.is_file() and path.suffix in (".h5", ".hdf5", ".hdf"):
        try:
            arrays = dict(h5py.File(path, "r", locking=False).items())
        except (OSError, RuntimeError, KeyError) as problem:
            raise ValueError(
                f"{path} cannot be read as HDF5 ({_one_line(problem)}); get it again"
            ) from None
        return _from_stacked(arrays, path)
    missing = "" if path.exists() else ", for nothing is there"
    raise ValueError(
        f"{path} is none of these{missing}: an .h5 file, a folder or stem of frames.npy and "
        f"actions.npy, a folder of .npz"
    )


def _npy_files(path: Path) -> dict[str, Path]:
    for frames in (path / "frames.npy", path.parent / f"{path.name}_frames.npy"):
        if frames.exists():
            prefix = frames.name.removesuffix("frames.npy")
            found = {
                n: frames.parent / f"{prefix}{n}.npy" for n in ("frames", "actions", *OPTIONAL_KEYS)
            }
            return {name: p for name, p in found.items() if p.exists()}
    return {}


def _load_npy(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r")
    except (ValueError, EOFError, OSError) as problem:
        raise ValueError(f"{path} cannot be read ({_one_line(problem)}); get it again") from None


def _from_stacked(arrays: dict[str, Any], path: Path) -> RawEpisodes:
    """Arrays whose first two axes are episode and step."""
    known = ("frames", "actions", *OPTIONAL_KEYS)
    known_arrays = {k: v for k, v in arrays.items() if k in known and hasattr(v, "shape")}
    names = frozenset(known_arrays) | frozenset(k for k in arrays if k not in known)
    if not {"frames", "actions"} <= known_arrays.keys():
        return RawEpisodes((), names, lambda n, k: np.empty(0), lambda n: str(path))
    frames, actions = known_arrays["frames"].shape, known_arrays["actions"].shape
    if len(frames) != 5:
        raise ValueError(
            f"{path} has frames of {frames}; (N, T, C, H, W) or (N, T, H, W, C) is needed"
        )
    for name, array in known_arrays.items():
        if array.shape[:2] != frames[:2]:
            raise ValueError(
                f"{path} has {frames[0]} episodes of {frames[1]} frames, but its {name} are "
                f"{array.shape}; the first two axes are the same in both"
            )
    if len(actions) > 3:
        raise ValueError(f"{path} has actions of {actions}; (N, T) or (N, T, A) is needed")

    def where(number: int) -> str:
        return f"episode {number} of {path}"

    def read(number: int, name: str) -> np.ndarray:
        try:
            return np.asarray(known_arrays[name][number])
        except (OSError, RuntimeError) as problem:
            raise ValueError(
                f"{where(number)}: its {name} cannot be read ({_one_line(problem)}); get the file again"
            ) from None

    return RawEpisodes((int(frames[1]),) * int(frames[0]), names, read, where)


def _from_npz(files: list[Path]) -> RawEpisodes:
    """Files that hold an episode each, of any length."""

    def damaged(number: int, problem: Exception) -> ValueError:
        return ValueError(f"{files[number]} cannot be read ({_one_line(problem)}); get it again")

    def names(number: int) -> frozenset[str]:
        try:
            with np.load(files[number]) as file:
                return frozenset(file.files)
        except (*READ_ERRORS, AttributeError, TypeError) as problem:  # an .npy of another name
            raise damaged(number, problem) from None

    def read(number: int, name: str) -> np.ndarray:
        try:
            with np.load(files[number]) as file:
                values = file[name]
        except READ_ERRORS as problem:
            raise damaged(number, problem) from None
        if values.ndim == 0:
            raise ValueError(
                f"{files[number]} has {name} of one number; a value for each step is needed"
            )
        return values

    first = names(0)
    expected = first & {"frames", "actions", *OPTIONAL_KEYS}
    for number in range(len(files)):
        present = names(number) & {"frames", "actions", *OPTIONAL_KEYS}
        if present != expected:
            raise ValueError(
                f"{files[number]} holds {', '.join(sorted(present)) or 'nothing known'}, but "
                f"{files[0].name} holds {', '.join(sorted(expected)) or 'nothing known'}; all files "
                f"need the same arrays"
            )
    lengths: tuple[int, ...] = ()
    if "actions" in first:
        lengths = tuple(len(read(number, "actions")) for number in range(len(files)))
    return RawEpisodes(lengths, first, read, lambda number: str(files[number]))


def _one_line(problem: Exception) -> str:
    return " ".join(str(problem).split())


def _infer_layout(shape: tuple[int, ...], layout: Layout, where: str) -> Layout:
    """Which of a frame's axes is colour; refused where both could be."""
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
            f"{where}: frames of {shape[1:]} have no axis of 3 colours as {layout}; store RGB, or "
            f"see to --layout"
        )
    return layout


def _to_uint8(frames: np.ndarray, scale: float, where: str) -> np.ndarray:
    """Give uint8 frames."""
    if frames.dtype == np.uint8 and scale == 1:
        return frames
    if frames.dtype.kind not in "biuf":
        raise ValueError(f"{where} has frames of {frames.dtype}; uint8 or floats are needed")
    if frames.size == 0:
        raise ValueError(f"{where} has frames of {frames.shape}, which hold no pixel; leave it out")
    values = frames.astype(np.float32) * scale
    if not np.isfinite(values).all():
        raise ValueError(f"{where} has NaN or infinity in its frames; leave such frames out")
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
            fix = f"--scale {scale:g} is too much" if scale != 1 else "give a --scale below 1"
        raise ValueError(
            f"{where} has frames from {low:.6g} to {high:.6g}, but 0 to 255 is needed; {fix}"
        )
    return values.round().clip(0, 255).astype(np.uint8)


def _infer_action_spec(raw: RawEpisodes) -> ActionSpec:
    """Tell the space from all actions, an episode in memory at a time."""
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
                f"{next(iter(shapes))[1]}; all need one shape"
            )
        if not np.isfinite(values).all():
            raise ValueError(f"{where} has NaN or infinity in its actions; leave such steps out")
        if values.ndim == 2:
            values = values.astype(np.float32)  # as the shards keep them
        lows.append(values.min(0))
        highs.append(values.max(0))
    low, high = np.min(lows, 0), np.max(highs, 0)
    if low.ndim == 0:
        if low < 0 or high >= MAX_CODES:
            first = int(np.argmin(lows) if low < 0 else np.argmax(highs))
            raise ValueError(
                f"{raw.location(first)} has the action code {int(low if low < 0 else high)}; codes "
                f"start at 0 and end below {MAX_CODES}: number them anew"
            )
        return ActionSpec("discrete", tuple(str(code) for code in range(int(high) + 1)))
    high = np.where(high > low, high, low + 1)  # a dimension that never changes
    names = tuple(f"action_{i}" for i in range(len(low)))
    return ActionSpec("continuous", names, tuple(map(float, low)), tuple(map(float, high)))
