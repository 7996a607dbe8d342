"""Files that are written whole or not at all, and folders that one process holds."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import IO


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


def lock(folder: Path) -> IO[str]:
    """Lock `folder` until the returned file is closed or the process ends, however it ends.

    ValueError where another process holds it.
    """
    # open for as long as the run lives
    file = open(folder / ".lock", "a+")  # noqa: SIM115
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.seek(0)
        holder = file.read().strip() or "unknown"
        file.close()
        raise ValueError(
            f"{folder} is in use by another process (number {holder}); "
            f"wait for it, stop it, or choose another --run"
        ) from None
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file
