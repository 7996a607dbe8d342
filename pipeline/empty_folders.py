"""A command that is refused leaves no folder behind that holds nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from data.io.files import LOCK_FILE


@contextmanager
def removed_if_empty(*folders: Path | None) -> Iterator[None]:
    """After a user's mistake, remove the folders, and those in and above them, that were made
    meanwhile and hold nothing but a lock of this process."""
    given = [folder for folder in folders if folder is not None]
    before = {
        known for folder in given for known in (*folder.parents, *_within(folder)) if known.exists()
    }
    try:
        yield
    except (ValueError, OSError):
        for folder in given:
            for made in (*_within(folder), *folder.parents):  # the innermost first
                if made not in before:
                    _remove(made)
        raise


def _within(folder: Path) -> list[Path]:
    """The folder and those in it, the innermost first."""
    return [Path(path) for path, _, _ in os.walk(folder, topdown=False)]


def _remove(folder: Path) -> None:
    lock = folder / LOCK_FILE
    with suppress(OSError):  # not empty, or not there
        if os.listdir(folder) == [LOCK_FILE] and lock.read_text() == str(os.getpid()):
            lock.unlink()
        folder.rmdir()
