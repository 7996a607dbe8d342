"""Files that are written whole or not at all, and folders that one process holds."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO, Any

# what flock says where another process holds the lock; all else is no lock at all
HELD = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)
LOCK_FILE = ".lock"
QUIETLY = "is done soon"  # of a lock that is waited for without a word
PARTIAL = re.compile(r"(.+)\.(\d+)\.partial")  # target and process


def atomic_write(path: Path, content: bytes | memoryview) -> None:
    """Write a file whole or not at all, also after a power cut."""
    with atomic_path(path) as partial:
        remove_abandoned(path.parent, path.name)
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give the path to write to; it becomes `path` at the end, or is removed after an error.

    ValueError where it cannot be written, such as on a full disk.
    """
    partial = partial_path(path)
    try:
        yield partial
        os.replace(partial, path)
    except OSError as error:
        raise ValueError(f"{path} was not written: {error.strerror or error}") from None
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def partial_path(path: Path) -> Path:
    """Return where this process writes what becomes `path`: no other process writes there."""
    return path.with_name(f"{path.name}.{os.getpid()}.partial")


def remove_abandoned(folder: Path, target: str = "") -> None:
    """Remove what killed processes have begun to write in `folder`, for one target or all."""
    for path in folder.iterdir():
        found = PARTIAL.fullmatch(path.name)
        if found and target in ("", found[1]) and not _is_alive(int(found[2])):
            path.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # of another user
        pass
    return True


def parse_json(text: str | bytes) -> Any:
    """Parse JSON; ValueError for whatever is wrong with it, also for one nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_text(path: Path) -> str:
    """Read a text file; OSError or ValueError where it cannot be read."""
    check_regular(path)
    return path.read_text()


def check_regular(path: Path) -> None:
    """ValueError for a pipe or a device, which a read would wait for without end."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        kind = "a named pipe" if stat.S_ISFIFO(mode) else "a device or a socket"
        raise ValueError(f"{path} is {kind}, not a file; delete it, or name another")


def writable_folder(folder: Path, flag: str = "--run") -> Path:
    """Create `folder` and check that files can be written there, before anything is computed.

    ValueError names the flag that chooses another folder.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file, not a folder; delete it, or choose another {flag}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = partial_path(folder / "probe")
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(
            f"{folder} cannot be written to ({error.strerror or error}); choose another {flag}"
        ) from None
    return folder


def lock(folder: Path, waiting_for: str = "", flag: str = "--run") -> IO[str]:
    """Lock `folder` until the returned file is closed or the process ends, however it ends.

    ValueError where it cannot be written to (`flag` chooses another), or where another process
    holds it; with `waiting_for`, a line with that is printed and the other process waited for. On
    a file system without locks there is a warning instead.
    """
    path = writable_folder(folder, flag) / LOCK_FILE
    if path.exists():
        check_regular(path)
    # open for as long as the run lives
    file = open(path, "a+")  # noqa: SIM115
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in HELD:
            _warn_without_locks(error.strerror or str(error))
            return file
        file.seek(0)
        holder = file.read().strip() or "unknown"
        if not waiting_for:
            file.close()
            raise ValueError(
                f"{folder} is in use by another process (number {holder}); "
                f"wait for it, stop it, or choose another {flag}"
            ) from None
        if waiting_for != QUIETLY:
            print(f"waiting for process {holder}, which {waiting_for}", file=sys.stderr, flush=True)
        fcntl.flock(file, fcntl.LOCK_EX)
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file


@cache
def _warn_without_locks(reason: str) -> None:
    print(
        f"warning: this file system has no locks ({reason}); start no second process on the same "
        f"run while this one works",
        file=sys.stderr,
    )
