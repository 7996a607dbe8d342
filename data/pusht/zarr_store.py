"""Arrays of a zarr store: a folder or a zip, of format 2 or 3. They are read whole, or refused."""

from __future__ import annotations

import math
import os
import zipfile
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.storage import ZipStore

from data.io.messages import one_line
from data.io.sniff import describe_content

MAX_DEPTH = 3  # folders between the given path and the store
MAX_VALUES = 10**9  # of an array: some thousand times the published data set
METADATA = (".zarray", "zarr.json")  # of an array, in format 2 and 3


class ZarrStore:
    """A store that holds `markers`, names of arrays such as data/state, somewhere below `path`.

    ValueError names the store, and what cannot be read in it.
    """

    def __init__(self, path: Path, markers: tuple[str, ...]) -> None:
        self.path = path
        roots, names = _in_folder(path, markers) if path.is_dir() else _in_zip(path, markers)
        if len(roots) > 1:
            raise ValueError(
                f"{path} holds {len(roots)} stores, {roots[0]} and {roots[1]} among them; give "
                f"the path of one"
            )
        self._root = roots[0] if roots else ""
        if path.is_dir():
            self._store: Any = str(path / self._root)
            self._prefix = ""
            self._names = _files_below(path / self._root)
        else:
            self._store = ZipStore(path, mode="r")
            self._prefix = self._root
            self._names = {n.removeprefix(self._root) for n in names if n.startswith(self._root)}

    def arrays(self) -> list[str]:
        """Return the names of the arrays in the store."""
        found = (name.rpartition("/") for name in self._names)
        return sorted({folder for folder, _, file in found if folder and file in METADATA})

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._open(name).shape)

    def read(self, name: str) -> np.ndarray:
        """Read an array of numbers; chunks that are not there are filled, see `missing_rows`."""
        array = self._open(name)
        if array.dtype.kind not in "biuf":
            raise ValueError(f"{self.path}: its {name} holds {array.dtype}, but numbers are needed")
        chunk = array.shards or array.chunks
        largest = max(math.prod(array.shape), math.prod(chunk))
        if largest > MAX_VALUES:
            raise ValueError(
                f"{self.path}: its {name} declares {array.shape} values in chunks of {chunk}, and "
                f"at most {MAX_VALUES} are read; get it again"
            )
        try:
            return np.asarray(array[...])
        except Exception as problem:  # zarr and its codecs raise many kinds
            raise ValueError(
                f"{self.path}: its {name} cannot be read ({one_line(problem)}); get it again"
            ) from None

    def missing_rows(self, name: str) -> tuple[list[slice], str]:
        """Return the rows of the chunks that the shape asks for and the store lacks, and a line
        that says how many there are and which is the first."""
        array = self._open(name)
        chunk = array.shards or array.chunks
        grid = [-(-size // step) for size, step in zip(array.shape, chunk, strict=True)]
        stored = [n for n in self._names if n.startswith(f"{name}/")]
        if math.prod(grid) > 2 * len(stored) + 1000:  # too many to name them all
            line = f"{name} is of {math.prod(grid)} chunks, and {len(stored)} files are there"
            return [slice(0, array.shape[0])], line
        rows, first = [], ""
        for place in product(*map(range, grid)):
            key = f"{name}/{array.metadata.encode_chunk_key(place)}"
            if key not in self._names:
                rows.append(slice(place[0] * chunk[0], (place[0] + 1) * chunk[0]))
                first = first or key
        return rows, f"{len(rows)} of {math.prod(grid)} chunks of {name} are missing, first {first}"

    def _open(self, name: str) -> Any:
        try:
            return zarr.open_array(self._store, path=f"{self._prefix}{name}", mode="r")
        except Exception as problem:
            raise ValueError(
                f"{self.path}: its {name} cannot be read ({one_line(problem)}); get it again"
            ) from None


def _in_folder(path: Path, markers: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Find the stores in a folder: their places in it."""
    for depth in range(MAX_DEPTH + 1):
        found = {
            "/".join(place.relative_to(path).parts[:depth])
            for marker in markers
            for file in METADATA
            for place in path.glob(f"{'*/' * depth}{marker}/{file}")
        }
        if found:
            return sorted(found), []
    return [], []


def _in_zip(path: Path, markers: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Find the stores in a zip: their places in it, which end with "/", and all its names."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [n for n in archive.namelist() if not _is_of_macos(n)]
    except zipfile.BadZipFile:
        kind = describe_content(path)
        if "zip archive" in kind:
            kind = "not a whole zip file (a truncated download?); get it again"
        raise ValueError(f"{path} is {kind}") from None
    except (OSError, NotImplementedError) as problem:
        raise ValueError(f"{path} cannot be read ({one_line(problem)})") from None
    ends = [f"{marker}/{file}" for marker in markers for file in METADATA]
    roots = {n.removesuffix(end) for n in names for end in ends if f"/{n}".endswith(f"/{end}")}
    return sorted(roots), names


def _is_of_macos(name: str) -> bool:
    """Whether macOS has put the file next to what is meant."""
    return name.startswith("__MACOSX/") or name.rpartition("/")[2].startswith("._")


def _files_below(folder: Path) -> set[str]:
    return {
        os.path.relpath(os.path.join(place, file), folder).replace(os.sep, "/")
        for place, _, files in os.walk(folder)
        for file in files
        if not _is_of_macos(file)
    }
