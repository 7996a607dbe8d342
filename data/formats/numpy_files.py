"""NumPy's files: .npz of an episode each (or of many), and .npy of one array each."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from data.formats.layout import recordings_of
from data.formats.recording import Recording, RecordingSet, reading
from data.io.sniff import describe_content

NPY = "NumPy .npy file"


def read_npz(files: Sequence[Path], frames_key: str) -> RecordingSet:
    """Read .npz files of one episode each, of any length; or one file of stacked episodes."""
    return RecordingSet(_NpzRecordings(files, frames_key), tuple(files))


class _NpzRecordings(Sequence[Recording]):
    """Recordings of .npz files, opened when they are asked for: there may be many."""

    def __init__(self, files: Sequence[Path], frames_key: str) -> None:
        self.files, self.frames_key = files, frames_key
        first = _recordings_of_npz(files[0], frames_key)
        self.stacked = first if len(first) > 1 else None
        self._last = 0, first[0]  # all fields of one recording are read in turn
        if self.stacked is not None and len(files) > 1:
            raise ValueError(
                f"{files[0]} holds {len(first)} stacked episodes; give such a file alone, or one "
                f"episode in each file"
            )

    def __len__(self) -> int:
        return len(self.files) if self.stacked is None else len(self.stacked)

    def __getitem__(self, number: Any) -> Recording:
        if self.stacked is not None:
            return self.stacked[number]
        if number != self._last[0]:
            found = _recordings_of_npz(self.files[number], self.frames_key)
            if len(found) > 1:
                raise ValueError(
                    f"{self.files[number]} holds stacked episodes, and others hold one"
                )
            self._last = number, found[0]
        return self._last[1]


def _recordings_of_npz(file: Path, frames_key: str) -> Sequence[Recording]:
    with open_file(file) as raw:
        if raw.read(2) != b"PK":
            raise ValueError(f"{file} is {describe_content(file)}, not an .npz file; remove it")
    with reading(str(file)), zipfile.ZipFile(file) as archive:
        arrays = {}
        for member in archive.infolist():
            with archive.open(member) as content:  # which checks its name, so all are opened
                if member.filename.endswith(".npy"):
                    arrays[member.filename.removesuffix(".npy")] = _Member(file, member, content)
    if not arrays:
        raise ValueError(f"{file} is a zip archive without arrays, not an .npz file; remove it")
    for member in arrays.values():
        member.check()
    return recordings_of(arrays, str(file), frames_key, one_episode=True)


class _Member:
    """An array of an .npz file: its header is read at once, its values when they are sliced."""

    def __init__(self, file: Path, member: zipfile.ZipInfo, content: IO[bytes]) -> None:
        self.file, self.name = file, member.filename
        self.values: np.ndarray | None = None
        header = np.lib.format.read_array_header_1_0
        if np.lib.format.read_magic(content) != (1, 0):
            header = np.lib.format.read_array_header_2_0
        self.shape, _, self.dtype = header(content)
        self.held = member.file_size - content.tell()  # bytes of values

    def check(self) -> None:
        """Refuse a header that declares other values than are there."""
        declared = math.prod(self.shape) * self.dtype.itemsize
        if not self.dtype.hasobject and declared != self.held:
            raise ValueError(
                f"{self.file}: its {self.name.removesuffix('.npy')} are declared as {self.dtype} "
                f"{self.shape}, {declared} bytes, but {self.held} are there; get the file again"
            )

    def __getitem__(self, rows: slice) -> np.ndarray:
        values = self.values
        if values is None:
            with zipfile.ZipFile(self.file) as archive, archive.open(self.name) as content:
                values = np.lib.format.read_array(content, allow_pickle=False)
            if rows != slice(0, len(values)):  # other parts follow
                self.values = values
        return values[rows]


def npy_files(path: Path) -> dict[str, Path]:
    """Find the .npy files of a folder, or of a stem (NAME_frames.npy and so on), by array."""
    for frames in (path / "frames.npy", path.parent / f"{path.name}_frames.npy"):
        if frames.is_file():
            prefix = frames.name.removesuffix("frames.npy")
            found = sorted(frames.parent.glob(f"{_escaped(prefix)}*.npy"))
            return {f.stem.removeprefix(prefix): f for f in found if not f.name.startswith(".")}
    return {}


def _escaped(prefix: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in prefix)


def read_npy(files: Mapping[str, Path], path: Path, frames_key: str) -> RecordingSet:
    """Read arrays of all episodes, a file each."""
    arrays = {name: load_npy(file) for name, file in files.items()}
    found = recordings_of(arrays, str(path), frames_key, one_episode=False)
    return RecordingSet(found, tuple(files.values()))


def load_npy(file: Path) -> np.ndarray:
    """Map an .npy file into memory."""
    with open_file(file) as raw:
        if raw.read(6) != b"\x93NUMPY":
            raise ValueError(f"{file} is {describe_content(file)}, not a {NPY}; get it again")
    with reading(str(file)):
        return np.load(file, mmap_mode="r", allow_pickle=False)


def open_file(file: Path) -> Any:
    try:
        return open(file, "rb")
    except OSError as problem:
        raise ValueError(f"{file} cannot be read ({problem.strerror or problem})") from None
