"""Files of arrays read as episodes: an HDF5 file, .npy files, or a folder of .npz.

Letters: N episodes, T steps, H W pixels, A numbers of an action.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401
import numpy as np

OPTIONAL_KEYS = ("rewards", "terminals", "states", "contacts")
READ_ERRORS = (zipfile.BadZipFile, zlib.error, ValueError, EOFError, OSError)


@dataclass(frozen=True)
class RawEpisodes:
    """Episodes as stored in the files, not yet interpreted."""

    lengths: tuple[int, ...]
    keys: frozenset[str]
    read: Callable[[int, str], np.ndarray]  # (episode, field) -> (T, ...)
    location: Callable[[int], str]  # an episode and its file, for messages


def read_raw(path: Path) -> RawEpisodes:
    """Open the files at `path`; ValueError names what cannot be read."""
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
    missing = "" if path.exists() else ", because it does not exist"
    raise ValueError(
        f"{path} is none of these{missing}: an .h5 file, a folder or stem of frames.npy (and "
        f"actions.npy), a folder of .npz"
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
    """Read arrays whose first two axes are episode and step."""
    known = ("frames", "actions", *OPTIONAL_KEYS)
    known_arrays = {k: v for k, v in arrays.items() if k in known and hasattr(v, "shape")}
    names = frozenset(known_arrays) | frozenset(k for k in arrays if k not in known)
    if "frames" not in known_arrays:
        return RawEpisodes((), names, lambda n, k: np.empty(0), lambda n: str(path))
    frames = known_arrays["frames"].shape
    actions = known_arrays["actions"].shape if "actions" in known_arrays else frames[:2]
    if len(frames) != 5:
        raise ValueError(
            f"{path} has frames of {frames}; (N, T, C, H, W) or (N, T, H, W, C) is needed"
        )
    for name, array in known_arrays.items():
        if array.shape[:2] != frames[:2]:
            raise ValueError(
                f"{path} has {frames[0]} episodes of {frames[1]} frames, but its {name} are "
                f"{array.shape}; the first two axes must be equal"
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
                f"{where(number)}: its {name} cannot be read ({_one_line(problem)}); get the "
                f"file again"
            ) from None

    return RawEpisodes((int(frames[1]),) * int(frames[0]), names, read, where)


def _from_npz(files: list[Path]) -> RawEpisodes:
    """Read files that hold one episode each, of any length."""

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
                f"{files[number]} has {name} of one number; one value per step is needed"
            )
        return values

    def num_frames(number: int) -> int:
        """Read the length from the array's header, without its pixels."""
        try:
            with zipfile.ZipFile(files[number]) as archive, archive.open("frames.npy") as file:
                version = np.lib.format.read_magic(file)
                if version == (1, 0):
                    shape, _, _ = np.lib.format.read_array_header_1_0(file)
                else:
                    shape, _, _ = np.lib.format.read_array_header_2_0(file)
        except (*READ_ERRORS, KeyError) as problem:
            raise damaged(number, problem) from None
        if not shape:
            raise ValueError(
                f"{files[number]} has frames of one number; one value per step is needed"
            )
        return shape[0]

    first = names(0)
    expected = first & {"frames", "actions", *OPTIONAL_KEYS}
    for number in range(len(files)):
        present = names(number) & {"frames", "actions", *OPTIONAL_KEYS}
        if present != expected:
            raise ValueError(
                f"{files[number]} holds {', '.join(sorted(present)) or 'nothing known'}, but "
                f"{files[0].name} holds {', '.join(sorted(expected)) or 'nothing known'}; all "
                f"files need the same arrays"
            )
    lengths: tuple[int, ...] = ()
    if "actions" in first:
        lengths = tuple(len(read(number, "actions")) for number in range(len(files)))
    elif "frames" in first:
        lengths = tuple(num_frames(number) for number in range(len(files)))
    return RawEpisodes(lengths, first, read, lambda number: str(files[number]))


def _one_line(problem: Exception) -> str:
    return " ".join(str(problem).split())
