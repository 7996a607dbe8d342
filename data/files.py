"""Atomic file writes."""

from __future__ import annotations

import os
from pathlib import Path


def atomic_write(path: Path, content: bytes | memoryview) -> None:
    """Write a file whole or not at all, also after a power cut."""
    temporary = path.with_name(path.name + ".partial")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ValueError(f"{path} was not written: {error.strerror or error}") from None
