"""Rows of one array in a file that is made once, resumed where it was interrupted, and checked.

FOLDER/latents.bin holds the rows, and metadata.json what they are of, how many there are, and
their checksum. Until all are there they lie in latents.bin.partial, so whoever has mapped an older
file keeps it whole.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import zlib
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np

from data.io.files import atomic_write, lock, parse_json, read_text

BYTES_PER_READ = 1 << 24
GIB = 2**30


class RowFile:
    """The rows of `shape`, of the data that `identity` describes; use it in a `with` statement.

    It is locked meanwhile: another process waits, and then finds the rows made.
    """

    def __init__(
        self, folder: Path, shape: tuple[int, ...], dtype: Any, identity: dict[str, Any]
    ) -> None:
        self.folder, self.shape, self.dtype = folder, shape, np.dtype(dtype)
        self.identity = identity | {"shape": list(shape), "dtype": self.dtype.name}
        self.metadata, self.path = folder / "metadata.json", folder / "latents.bin"
        self.partial = folder / "latents.bin.partial"
        self.row_bytes = math.prod(shape[1:]) * self.dtype.itemsize
        self.done, self.checksum = 0, 0  # rows that are there, and the CRC-32 of their bytes
        self._file: IO[bytes] | None = None
        self._checked = False  # all rows are at `path`, and their checksum is right

    def __enter__(self) -> RowFile:
        self._lock = lock(self.folder, f"makes the latents in {self.folder}")
        found = self._read_metadata()
        if found is None:
            return self
        done, checksum = found
        for path in (self.path, self.partial):
            if (path == self.partial or done == len(self)) and self._holds(path, done, checksum):
                self.done, self.checksum = done, checksum
                self._checked = path == self.path
                return self
        print(f"{self.folder} is incomplete or damaged; its latents are made again")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        if self._file is not None:
            with suppress(OSError):  # what is left in its buffer, after a write that failed
                self._file.close()
        self._lock.close()

    def __len__(self) -> int:
        return self.shape[0]

    def append(self, rows: np.ndarray) -> None:
        """Write the next rows; ValueError on a full disk."""
        assert rows.shape[1:] == self.shape[1:] and rows.dtype == self.dtype
        content = np.ascontiguousarray(rows).tobytes()
        try:
            self._open().write(content)  # a map of a file would end in a bus error on a full disk
        except OSError as error:
            raise self._not_written(error.strerror or str(error)) from None
        self.done += len(rows)
        self.checksum = zlib.crc32(content, self.checksum)

    def flush(self) -> None:
        """Put the rows on the disk, and remember how many there are."""
        try:
            file = self._open()
            file.flush()
            os.fsync(file.fileno())
        except OSError as error:
            raise self._not_written(error.strerror or str(error)) from None
        content = self.identity | {"num_encoded": self.done, "checksum": self.checksum}
        atomic_write(self.metadata, json.dumps(content).encode())

    def finish(self) -> np.memmap:
        """Map the rows, once all are there."""
        assert self.done == len(self)
        if not self._checked:
            if self._file is not None:
                self.flush()
            with suppress(FileNotFoundError):  # another process did so, where there are no locks
                os.replace(self.partial, self.path)
            if not self._holds(self.path, self.done, self.checksum):
                raise ValueError(
                    f"{self.path} does not hold what was written to it; let one process at a time "
                    f"work there, and run again"
                )
        return np.memmap(self.path, self.dtype, "r", shape=self.shape)

    def _open(self) -> IO[bytes]:
        """Open the file behind the rows that are there."""
        if self._file is None:
            needed = (len(self) - self.done) * self.row_bytes
            free = shutil.disk_usage(self.folder).free
            if needed > free:
                raise self._not_written(
                    f"it needs {needed / GIB:.3f} GiB, and the disk has {free / GIB:.3f} GiB free"
                )
            if not self.done:
                self.path.unlink(missing_ok=True)  # whoever has mapped it keeps it
            self._file = open(self.partial, "r+b" if self.done else "wb")  # noqa: SIM115
            self._file.truncate(self.done * self.row_bytes)
            self._file.seek(0, os.SEEK_END)
        return self._file

    def _not_written(self, reason: str) -> ValueError:
        return ValueError(
            f"{self.path} was not written: {reason}; make room, and run again to resume"
        )

    def _read_metadata(self) -> tuple[int, int] | None:
        """Return the rows that are there and their checksum; None where they are of other data,
        or the file cannot be read: they are made again."""
        try:
            found = parse_json(read_text(self.metadata))
        except (OSError, ValueError):
            return None
        if not isinstance(found, dict):
            return None
        done, checksum = found.pop("num_encoded", None), found.pop("checksum", None)
        if found != self.identity or type(done) is not int or type(checksum) is not int:
            return None
        return (done, checksum) if 0 < done <= len(self) else None

    def _holds(self, path: Path, rows: int, checksum: int) -> bool:
        """Whether a file begins with these rows."""
        left, found = rows * self.row_bytes, 0
        try:
            if not path.is_file() or path.stat().st_size < left:
                return False
            with open(path, "rb") as file:
                while left and (block := file.read(min(left, BYTES_PER_READ))):
                    found, left = zlib.crc32(block, found), left - len(block)
        except OSError:
            return False
        return not left and found == checksum
