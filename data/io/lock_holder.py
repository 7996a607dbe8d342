"""Who holds a folder that `lock` locks, without taking it."""

from __future__ import annotations

import fcntl
from pathlib import Path

from data.io.files import HELD, LOCK_FILE


def lock_holder(folder: Path) -> str:
    """Give the number of the process that holds a folder; empty where none does, or where locks are
    not known."""
    path = folder / LOCK_FILE
    if not path.is_file():
        return ""
    try:
        with open(path) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # until the file is closed
            except OSError as error:
                return (file.read().strip() or "unknown") if error.errno in HELD else ""
    except OSError:
        pass
    return ""
