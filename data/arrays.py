"""Recordings from elsewhere: an HDF5 file, .npy pairs, or a folder of .npz.

Letters: N episodes, T steps, H W pixels, A numbers of an action.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import h5py
import hdf5plugin  # noqa: F401
import numpy as np

from data.actions import ActionSpec
from data.episodes import STEP_TYPES, Episode

Layout = Literal["auto", "CHW", "HWC"]
BYTES_PER_SHARD = 64 * 2**20
OPTIONAL = ("rewards", "terminals", "states", "contacts")


@dataclass(frozen=True)
class Opened:
    """What is known of the recordings before a frame is read."""

    lengths: tuple[int, ...]
    image_size: tuple[int, int]
    actions: ActionSpec
    optional: tuple[str, ...]
    read: Callable[[int, str], np.ndarray]  # (episode, field) -> (T, ...)
    layout: Layout


@dataclass(frozen=True)
class Arrays:
    """A source of imported episodes; each is a source of its own.

    Frames are uint8, or floats of 0 to 255 once multiplied by `scale`. Whole-number actions are
    codes; others are continuous, between the smallest and the largest value of each dimension.
    """

    path: str
    layout: Layout = "auto"
    scale: float = 1.0

    @property
    def sources(self) -> int:
        return len(self._opened().lengths)

    @property
    def shards(self) -> int:
        return len(self._groups())

    def description(self) -> dict[str, Any]:
        opened = self._opened()
        return {
            "source": "arrays",
            "image_size": list(opened.image_size),
            "actions": opened.actions.as_dict(),
            "state_names": [],
            "settings": asdict(self) | {"path": Path(self.path).name},
        }

    def make(self, index: int) -> list[Episode]:
        return [self.episode(number) for number in self._groups()[index]]

    def episode(self, number: int) -> Episode:
        opened = self._opened()
        where = f"episode {number} of {self.path}"
        frames = _as_bytes(opened.read(number, "frames"), self.scale, where)
        if opened.layout == "CHW":
            frames = frames.transpose(0, 2, 3, 1)
        if frames.shape[1:3] != opened.image_size:
            raise ValueError(
                f"{where} has frames of {frames.shape[1]} x {frames.shape[2]} pixels, and the "
                f"first episode of {opened.image_size[0]} x {opened.image_size[1]}; make them one "
                f"size"
            )
        actions = opened.read(number, "actions")
        if len(actions) != len(frames):
            raise ValueError(
                f"{where} has {len(frames)} frames but {len(actions)} actions; there is one action "
                f"for each frame (the last leads nowhere)"
            )
        kind = np.int64 if opened.actions.kind == "discrete" else np.float32
        extra: dict[str, Any] = {
            name: opened.read(number, name).astype(STEP_TYPES[name]) for name in opened.optional
        }
        return Episode(
            frames=np.ascontiguousarray(frames),
            actions=actions.astype(kind),
            source=number,
            **extra,
        )

    def _opened(self) -> Opened:
        return _open(Path(self.path), self.layout, self.scale)

    def _groups(self) -> list[list[int]]:
        opened = self._opened()
        height, width = opened.image_size
        groups: list[list[int]] = [[]]
        size = 0
        for number, length in enumerate(opened.lengths):
            if groups[-1] and size + length * height * width * 3 > BYTES_PER_SHARD:
                groups.append([])
                size = 0
            groups[-1].append(number)
            size += length * height * width * 3
        return groups


@lru_cache(maxsize=2)
def _open(path: Path, layout: Layout, scale: float) -> Opened:
    lengths, read, names = _reader(path)
    if not lengths:
        raise ValueError(f"{path} holds no episode")
    for name in ("frames", "actions"):
        if name not in names:
            raise ValueError(
                f"{path} has no {name} (it holds {', '.join(sorted(names)) or 'nothing'}); an "
                f"array of that name is needed"
            )
    first = read(0, "frames")
    layout = _tell_layout(first.shape, layout, path)
    _as_bytes(first[:1], scale, f"episode 0 of {path}")
    size = first.shape[2:4] if layout == "CHW" else first.shape[1:3]
    spec = _action_spec([read(n, "actions") for n in range(len(lengths))], path)
    optional = tuple(name for name in OPTIONAL if name in names)
    return Opened(tuple(lengths), (int(size[0]), int(size[1])), spec, optional, read, layout)


def _reader(path: Path) -> tuple[list[int], Callable[[int, str], np.ndarray], set[str]]:
    """Lengths of the episodes, what reads a field of one, and the names of the fields."""
    if path.is_dir() and (files := sorted(path.glob("*.npz"))):
        return _npz_reader(files)
    pair = _npy_pair(path)
    if pair:
        arrays = {k: _load_npy(p) for k, p in pair.items()}
        return _stacked(arrays, str(path))
    if path.is_file() and path.suffix in (".h5", ".hdf5", ".hdf"):
        try:
            file = h5py.File(path, "r")
        except OSError as problem:
            raise ValueError(f"{path} cannot be read as HDF5 ({problem})") from None
        arrays = {k: v for k, v in file.items() if isinstance(v, h5py.Dataset)}
        return _stacked(arrays, str(path))
    raise ValueError(
        f"{path} is none of these: an .h5 file, a folder or stem of frames.npy and actions.npy, a "
        f"folder of .npz"
    )


def _npy_pair(path: Path) -> dict[str, Path]:
    for frames in (path / "frames.npy", path.parent / f"{path.name}_frames.npy"):
        if frames.exists():
            start = frames.name.removesuffix("frames.npy")
            found = {n: frames.parent / f"{start}{n}.npy" for n in ("frames", "actions", *OPTIONAL)}
            return {name: p for name, p in found.items() if p.exists()}
    return {}


def _load_npy(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r")
    except (ValueError, EOFError, OSError) as problem:
        raise ValueError(f"{path} cannot be read ({problem})") from None


def _stacked(
    arrays: dict[str, Any], where: str
) -> tuple[list[int], Callable[[int, str], np.ndarray], set[str]]:
    """Arrays whose first two axes are episode and step."""
    kept = {k: v for k, v in arrays.items() if k in ("frames", "actions", *OPTIONAL)}
    if "frames" in kept and "actions" in kept:
        frames, actions = kept["frames"].shape, kept["actions"].shape
        if len(frames) != 5:
            raise ValueError(
                f"{where} has frames of {frames}; (N, T, C, H, W) or (N, T, H, W, C) is needed"
            )
        for name, array in kept.items():
            if array.shape[:2] != frames[:2]:
                raise ValueError(
                    f"{where} has {frames[0]} episodes of {frames[1]} frames, but its {name} are "
                    f"{array.shape}; the first two axes are the same in both"
                )
        if len(actions) > 3:
            raise ValueError(f"{where} has actions of {actions}; (N, T) or (N, T, A) is needed")
    count, steps = kept["frames"].shape[:2] if "frames" in kept else (1, 0)
    return [int(steps)] * int(count), lambda n, k: np.asarray(kept[k][n]), set(kept)


def _npz_reader(
    files: list[Path],
) -> tuple[list[int], Callable[[int, str], np.ndarray], set[str]]:
    def read(number: int, name: str) -> np.ndarray:
        try:
            with np.load(files[number]) as file:
                return file[name]
        except KeyError:
            raise ValueError(f"{files[number]} has no {name}; the first file does") from None
        except (zipfile.BadZipFile, ValueError, EOFError, OSError) as problem:
            raise ValueError(f"{files[number]} cannot be read ({problem})") from None

    try:
        with np.load(files[0]) as file:
            names = set(file.files)
    except (zipfile.BadZipFile, ValueError, EOFError, OSError) as problem:
        raise ValueError(f"{files[0]} cannot be read ({problem})") from None
    lengths = [len(read(n, "actions")) for n in range(len(files))] if "actions" in names else [0]
    return lengths, read, names


def _tell_layout(shape: tuple[int, ...], layout: Layout, path: Path) -> Layout:
    """Which of a frame's axes is colour; refused where both could be."""
    if len(shape) != 4:
        raise ValueError(f"{path} has frames of shape {shape} in an episode; four axes are needed")
    first, last = shape[1] == 3, shape[3] == 3
    if layout == "auto":
        if first and last:
            raise ValueError(
                f"{path}: frames of {shape[1:]} could be (C, H, W) or (H, W, C); give --layout CHW "
                f"or --layout HWC"
            )
        layout = "CHW" if first else "HWC"
    if not (first if layout == "CHW" else last):
        raise ValueError(f"{path}: frames of {shape[1:]} have no axis of 3 colours as {layout}")
    return layout


def _as_bytes(frames: np.ndarray, scale: float, where: str) -> np.ndarray:
    """Give uint8 frames."""
    if frames.dtype == np.uint8:
        return frames
    values = frames.astype(np.float32) * scale
    if not np.isfinite(values).all():
        raise ValueError(f"{where} has NaN or infinity in its frames")
    if values.min() < -0.5 or values.max() > 255.5:
        raise ValueError(
            f"{where} has frames from {values.min():.3g} to {values.max():.3g}, but 0 to 255 is "
            f"needed; see to --scale"
        )
    if 0 < values.max() <= 1.0:
        raise ValueError(
            f"{where} has frames from {values.min():.3g} to {values.max():.3g}, which look like "
            f"fractions; give --scale 255"
        )
    return values.round().clip(0, 255).astype(np.uint8)


def _action_spec(parts: list[np.ndarray], path: Path) -> ActionSpec:
    ranks = {part.ndim for part in parts}
    if len(ranks) != 1 or len({part.shape[1:] for part in parts}) != 1:
        shapes = sorted({str(part.shape[1:]) for part in parts})
        raise ValueError(f"{path} has actions of different shapes: {', '.join(shapes)}")
    whole = np.concatenate(parts)
    if np.issubdtype(whole.dtype, np.integer) and whole.ndim == 1:
        if whole.min() < 0:
            raise ValueError(f"{path} has the action code {whole.min()}; codes start at 0")
        return ActionSpec("discrete", tuple(str(code) for code in range(int(whole.max()) + 1)))
    if whole.ndim != 2:
        raise ValueError(
            f"{path} has actions of {whole.shape[1:]} a step; codes or (A,) are needed"
        )
    if not np.isfinite(whole).all():
        raise ValueError(f"{path} has NaN or infinity in its actions")
    low, high = whole.min(0).astype(float), whole.max(0).astype(float)
    high = np.where(high > low, high, low + 1)
    names = tuple(f"action_{i}" for i in range(whole.shape[1]))
    return ActionSpec("continuous", names, tuple(low.tolist()), tuple(high.tolist()))
