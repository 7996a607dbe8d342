"""The two files of a recording: as files of their own, or inside a tar file."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class FileSlice:
    """A file, or a byte range of one: a member of an uncompressed tar file."""

    path: str
    offset: int = 0
    size: int | None = None
    """Bytes; None for all up to the end of the file."""
    member: str = ""
    """Name inside the tar file."""

    def __str__(self) -> str:
        return f"{self.path}:{self.member}" if self.member else self.path

    def open(self) -> io.BufferedReader:
        """Open the slice for reading and seeking, like a file."""
        if self.size is None:
            return open(self.path, "rb")
        return io.BufferedReader(_SliceReader(self.path, self.offset, self.size))

    def read(self) -> bytes:
        with self.open() as file:
            return file.read()


@dataclass(frozen=True)
class VideoAndLog:
    """One recording: a video, and a log with a line per frame."""

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
