"""What a folder of shards says of itself: build.json, and the command that makes them."""

from __future__ import annotations

import errno
import math
import os
import re
import shlex
from pathlib import Path
from typing import Any

from data.io.files import parse_json, read_text
from data.io.messages import first_few

BUILD_FILE = "build.json"
STORE_FILE = "store.json"  # says from where shards are fetched that are not here
SKIPPED = ".skipped"  # suffix of a skipped shard's file, which holds the reason
RAISE_LIMIT = "raise the limit of open files (ulimit -n 1024), or lower the number of workers"
NOT_OPENED = {
    errno.EMFILE: RAISE_LIMIT,
    errno.ENFILE: RAISE_LIMIT,
    errno.EACCES: "let its owner make it readable (chmod a+r)",
    errno.EPERM: "let its owner make it readable (chmod a+r)",
}
"""Why a file that may be whole is not opened, and the way out."""
SHARD_FILE = re.compile(r"shard-(\d{5,12})\.h5")


class NoShards(ValueError):
    """A folder in which no shards were begun."""

    def __init__(self, folder: Path, command: str) -> None:
        self.folder = folder
        super().__init__(f"{folder} holds no shards; make them with: {command}")


def shard_name(index: int) -> str:
    return f"shard-{index:05d}.h5"


def shard_index(path: Path) -> int | None:
    """Return the number of a shard's file, or of a skipped one's; None for other files."""
    found = SHARD_FILE.fullmatch(f"{path.stem}.h5")
    number = int(found[1]) if found else None
    return number if number is not None and shard_name(number)[:-3] == path.stem else None


def shards_folder(folder: Path) -> Path:
    """Return the shards folder of a run, or `folder` itself where it is not a run."""
    subfolder = folder / "shards"
    return subfolder if subfolder.is_dir() else folder


def read_build_info(folder: Path) -> dict[str, Any] | None:
    """Read build.json; None where it does not exist, as for shards written manually.

    Has `description` (dict), `shards` (int), `command` (str) and `seconds` (float).
    """
    path = folder / BUILD_FILE
    if not path.exists():
        return None
    try:
        info = parse_json(read_text(path))
        if not isinstance(info, dict):
            raise ValueError("it holds no fields")
        wrong = [key for key, is_right in _FIELDS.items() if not is_right(info.get(key))]
        if wrong:
            raise ValueError(f"it lacks {', '.join(wrong)}")
    except (OSError, ValueError) as problem:
        raise ValueError(
            f"{path} is damaged ({problem}); delete it and run python preprocess.py as "
            f"before, which writes it again and keeps the shards"
        ) from None
    return info


def _is_command(value: Any) -> bool:
    try:
        return isinstance(value, str) and isinstance(shlex.split(value), list)
    except ValueError:  # a quotation without its end
        return False


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


_FIELDS = {
    "description": lambda value: isinstance(value, dict),
    "shards": lambda value: _is_number(value) and isinstance(value, int) and value > 0,
    "command": _is_command,
    "seconds": lambda value: _is_number(value) and value >= 0,
}


def rebuild_command(folder: Path) -> str:
    """Return the command that builds the shards of a folder, at its current location."""
    info = read_build_info(folder)
    words = shlex.split(info["command"] if info else "python preprocess.py SOURCE")
    for position, word in reversed(list(enumerate(words))):
        if word == "--run" or word.startswith("--run="):
            del words[position : position + (2 if word == "--run" else 1)]
    run = folder.parent if folder.name == "shards" else folder
    return shlex.join([*words, "--run", str(run)])


def damaged(path: Path, problem: Exception, where: str = "") -> ValueError:
    """Return the error of a shard that cannot be read, `where` of it, with its way out."""
    code = problem.errno if isinstance(problem, OSError) else None
    if code in NOT_OPENED:
        return ValueError(f"{path} cannot be opened ({os.strerror(code)}); {NOT_OPENED[code]}")
    reason = " ".join(f"{where}{problem}".split())
    return ValueError(
        f"{path} is damaged ({reason}); delete that one file and run again, which rebuilds "
        f"it and keeps the others: {rebuild_command(path.parent)}"
    )


def skipped_shards(folder: Path) -> dict[int, Path]:
    """Return the files of skipped shards, by the number of the shard."""
    paths = sorted(folder.glob(f"shard-*{SKIPPED}"))
    return {index: path for path in paths if (index := shard_index(path)) is not None}


def skip_reason(path: Path) -> str:
    """Return why a shard was skipped, in one line."""
    try:
        return " ".join(read_text(path).split())
    except (OSError, ValueError):
        return f"{path.name} cannot be read"


def shard_paths(folder: Path) -> list[Path]:
    """Return the shards of a folder, in order.

    ValueError where some are missing, or belong to another build, with the way out.
    """
    paths = sorted(folder.glob("shard-*.h5"))
    info = read_build_info(folder)
    if info is None:  # written manually: whatever is there
        if not paths:
            raise NoShards(folder, rebuild_command(folder))
        return paths
    count: int = info["shards"]
    foreign = [path.name for path in paths if (i := shard_index(path)) is None or i >= count]
    if foreign:
        raise ValueError(
            f"{folder} holds {first_few(foreign)}, but its build has {count} shards, from "
            f"{shard_name(0)} on; move away what is of another build"
        )
    present = {shard_index(path) for path in paths}
    skipped = {i: p for i, p in skipped_shards(folder).items() if i < count and i not in present}
    if len(skipped) == count:
        reasons = sorted({skip_reason(path) for path in skipped.values()})
        raise ValueError(f"{folder} holds no shards: all were skipped: {first_few(reasons, 2)}")
    if len(paths) != count - len(skipped):
        raise ValueError(
            f"{folder} holds {len(paths)} of {count - len(skipped)} shards; finish them with: "
            f"{rebuild_command(folder)}"
        )
    return sorted(paths, key=lambda path: shard_index(path) or 0)
