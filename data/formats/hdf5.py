"""HDF5 files: a group an episode (robomimic, ManiSkill, Minari), or arrays of all episodes."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401
import numpy as np

from data.formats.decode_image import decode_image
from data.formats.layout import LENGTHS, recordings_of
from data.formats.numpy_files import open_file
from data.formats.recording import WAY_OUT, Recording, RecordingSet, reading
from data.formats.size_limits import check_count
from data.io.messages import first_few
from data.io.sniff import HDF5, describe_content

SUFFIXES = (".h5", ".hdf5", ".hdf")
MAX_DEPTH = 8  # groups within groups
IMAGE_HEADS = (b"\xff\xd8\xff", b"\x89PNG")
NUMBERED = re.compile(r"(.*?)(\d+)")


@dataclass(frozen=True)
class _Kind:
    """A format that is known by its layout."""

    name: str
    names: Mapping[str, str] = field(default_factory=dict)  # stored name -> field
    by_transition: bool = False


GYMNASIUM = {"actions": "actions", "rewards": "rewards"}
# obs of T steps, actions of T, rewards of their outcomes; dones may mean success, so they are left
ROBOMIMIC = _Kind("robomimic", GYMNASIUM | {"states": "states"}, by_transition=True)
# T + 1 observations, T actions, rewards, terminated and truncated
MANISKILL = _Kind("ManiSkill", GYMNASIUM | {"terminated": "terminals", "truncated": "truncations"})
MINARI = _Kind("Minari", GYMNASIUM | {"terminations": "terminals", "truncations": "truncations"})
# T rows; the action leads on and the last one is NaN; reward and ends are of reaching the frame
STABLE_WORLDMODEL = _Kind(
    "stable-worldmodel",
    {
        "pixels": "frames",
        "action": "actions",
        "reward": "rewards",
        "terminated": "terminals",
        "truncated": "truncations",
    },
)
D4RL = _Kind("D4RL", {"observations": "frames", "timeouts": "truncations"}, by_transition=True)


def is_hdf5(path: Path) -> bool:
    """Say whether a file is HDF5 by its name, or by its first bytes."""
    if path.suffix.lower() in SUFFIXES:
        return True
    with open_file(path) as file:
        return file.read(len(HDF5)) == HDF5


def read_hdf5(files: Sequence[Path], frames_key: str, one_episode: bool) -> RecordingSet:
    """Read HDF5 files of one format; steps in a row are an episode each if `one_episode`."""
    if len(files) == 1:
        found, kind = _read_one(files[0], frames_key, one_episode)
    else:
        found = _HdfRecordings(files, frames_key)
        kind = found.kind
    return RecordingSet(found, tuple(files), kind.names, kind.by_transition)


class _HdfRecordings(Sequence[Recording]):
    """Recordings of many HDF5 files, of which one is open at a time."""

    def __init__(self, files: Sequence[Path], frames_key: str) -> None:
        self.files, self.frames_key = files, frames_key
        self.firsts: list[int] = []  # number of the first recording of each file
        self.size = 0
        self._last: tuple[int, Sequence[Recording]] = -1, []
        _check_all(files)
        for number, file in enumerate(files):
            found, kind = _read_one(file, frames_key, one_episode=True)
            if not number:
                self.kind = kind
            if kind.name != self.kind.name:
                raise ValueError(
                    f"{file} is laid out as {kind.name}, and {files[0]} as {self.kind.name}; "
                    f"import them one at a time"
                )
            self.firsts.append(self.size)
            self.size += len(found)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, number: Any) -> Recording:
        if not 0 <= number < self.size:
            raise IndexError(number)
        file = bisect_right(self.firsts, number) - 1
        if file != self._last[0]:
            self._last = -1, []  # closes the file before
            found, _ = _read_one(self.files[file], self.frames_key, one_episode=True)
            self._last = file, found
        return self._last[1][number - self.firsts[file]]


def _check_all(files: Sequence[Path]) -> None:
    """Open each once, so that all that are damaged are named together."""
    faults: dict[str, str] = {}
    for file in files:
        try:
            _open_file(file).close()
        except ValueError as problem:
            faults[file.name] = str(problem)
    if len(faults) == 1:
        raise ValueError(*faults.values())
    if faults:
        first, *others = faults
        raise ValueError(
            f"{faults[first].removesuffix(f'; {WAY_OUT}')}, and {first_few(others)} cannot be read "
            f"either; get them again, or move them away"
        )


def _open_file(file: Path) -> h5py.File:
    with open_file(file):  # a missing file, or one that may not be read
        pass
    if not h5py.is_hdf5(file):
        raise ValueError(f"{file} is {describe_content(file)}, not an HDF5 file; {WAY_OUT}")
    with reading(f"{file} (HDF5)"):
        return h5py.File(file, "r", locking=False)


def _read_one(file: Path, frames_key: str, one_episode: bool) -> tuple[Sequence[Recording], _Kind]:
    where, root = str(file), _open_file(file)
    groups = _episode_groups(root, where)
    if not groups:
        arrays = _arrays(root, where)
        return recordings_of(arrays, where, frames_key, one_episode), _kind_of_rows(arrays)
    check_count(len(groups), where)
    recordings: list[Recording] = []
    arrays = {}
    for name, group in groups.items():
        arrays = _arrays(group, f"{name} of {where}")
        recordings += recordings_of(arrays, f"{name} of {where}", frames_key, one_episode=True)
    return recordings, _kind_of_groups(next(iter(groups)), arrays)


def _kind_of_rows(arrays: Mapping[str, Any]) -> _Kind:
    if LENGTHS in arrays and "pixels" in arrays:
        return STABLE_WORLDMODEL
    if {"observations", "actions", "rewards", "terminals"} <= arrays.keys():
        return D4RL
    return _Kind("arrays")


def _kind_of_groups(name: str, arrays: Mapping[str, Any]) -> _Kind:
    if name.startswith("data/demo"):
        return ROBOMIMIC
    if "terminations" in arrays and "truncations" in arrays:
        return MINARI
    if "terminated" in arrays and name.startswith("traj"):
        return MANISKILL
    return _Kind("groups")


def _episode_groups(root: Any, where: str) -> dict[str, Any]:
    """Find the groups that are numbered alike, in the root or in `data`: an episode each."""
    parent, prefix = root, ""
    with reading(where):
        has_data = _link(root, "data") is not None
    if has_data and isinstance(data := _open(root, "data", where), h5py.Group):
        parent, prefix = data, "data/"
    with reading(where):
        names = list(parent)
    numbered = {name: match for name in names if (match := NUMBERED.fullmatch(name))}
    if len({match[1] for match in numbered.values()}) != 1:
        return {}
    others = [_open(parent, name, where) for name in names if name not in numbered]
    if any(isinstance(item, h5py.Dataset) for item in others):
        return {}
    found = {}
    for name in sorted(numbered, key=lambda n: int(numbered[n][2])):
        item = _open(parent, name, where)
        if not isinstance(item, h5py.Group):
            return {}
        found[prefix + name] = item
    return found


def _arrays(group: Any, where: str, prefix: str = "", depth: int = 0) -> dict[str, Any]:
    """List all datasets below a group by their paths; refuse what lies in another file."""
    if depth > MAX_DEPTH:
        raise ValueError(f"{where}: {prefix} has more than {MAX_DEPTH} groups within each other")
    found: dict[str, Any] = {}
    with reading(where):
        names = list(group)
    for name in names:
        item = _open(group, name, where)
        if isinstance(item, h5py.Group):
            found |= _arrays(item, where, f"{prefix}{name}/", depth + 1)
        elif isinstance(item, h5py.Dataset) and item.shape is not None:
            found[prefix + name] = _decoded(item, f"{where}: its {prefix}{name}")
    return found


def _link(group: Any, name: str) -> Any:
    return group.get(name, getlink=True)


def _open(group: Any, name: str, where: str) -> Any:
    """Open a member; ValueError where it, or its values, lie in another file."""
    with reading(where):
        link = _link(group, name)
    external = isinstance(link, h5py.ExternalLink)
    item = None
    if not external:
        with reading(f"{where}: its {name}"):
            item = group[name]
            external = item.file.id != group.file.id  # a link to a link
            if isinstance(item, h5py.Dataset):
                external |= bool(item.external) or item.is_virtual
    if external:
        raise ValueError(
            f"{where}: {name} lies in another file, which is never read; copy the values into this "
            f"one (h5repack, or h5py's Group.copy with expand_external=True)"
        )
    return item


def _decoded(dataset: Any, where: str) -> Any:
    """Wrap a dataset of JPEG or PNG files, as Minari stores images, as one of frames."""
    with reading(where):
        flexible = h5py.check_vlen_dtype(dataset.dtype)
        bytes_in_rows = dataset.dtype == np.uint8 and len(dataset.shape) == 2
        as_bytes = flexible == np.dtype("uint8") and len(dataset.shape) == 1
        if not (bytes_in_rows or as_bytes) or not dataset.shape[0]:
            return dataset
        first = np.asarray(dataset[0]).tobytes()
    return _EncodedImages(dataset, where, first) if first.startswith(IMAGE_HEADS) else dataset


class _EncodedImages:
    """Image files in the rows of a dataset, sliced as frames: (T, H, W, 3) uint8, RGB."""

    def __init__(self, dataset: Any, where: str, first: bytes) -> None:
        self.dataset, self.where, self.dtype = dataset, where, np.dtype(np.uint8)
        self.shape = (int(dataset.shape[0]), *self._decode(first, 0).shape)

    def __getitem__(self, rows: slice) -> np.ndarray:
        start, stop, _ = rows.indices(self.shape[0])
        frames = np.empty((stop - start, *self.shape[1:]), np.uint8)
        for index, row in enumerate(self.dataset[start:stop]):
            frames[index] = self._decode(np.asarray(row).tobytes(), start + index)
        return frames

    def _decode(self, content: bytes, row: int) -> np.ndarray:
        return decode_image(content, f"{self.where}: row {row}")
