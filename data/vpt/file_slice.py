"""Where the two files of a recording lie: on their own, or inside a tar file."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class FileSlice:
    """A file, or a stretch of one: a member of a tar file, as it lies there."""

    path: str
    offset: int = 0
    size: int | None = None
    """Bytes; None to the end of the file."""
    member: str = ""
    """Name inside the tar file."""

    def __str__(self) -> str:
        return f"{self.path}:{self.member}" if self.member else self.path

    def open(self) -> io.BufferedReader:
        """Open for reading and seeking, as a file of its own."""
        if self.size is None:
            return open(self.path, "rb")
        return io.BufferedReader(_SliceReader(self.path, self.offset, self.size))

    def read(self) -> bytes:
        with self.open() as file:
            return file.read()


@dataclass(frozen=True)
class VideoAndLog:
    """One recording: frames, and what was done at each."""

    name: str
    video: FileSlice
    log: FileSlice


class _SliceReader(io.RawIOBase):
    def __init__(self, path: str, offset: int, size: int) -> None:
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115
        self._offset, self._size, self._position = offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        count = max(0, min(len(buffer), self._size - self._position))
        self._file.seek(self._offset + self._position)
        read = self._file.readinto(memoryview(buffer)[:count]) or 0
        self._position += read
        return read

    def close(self) -> None:
        self._file.close()
        super().close()
