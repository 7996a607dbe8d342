"""Files below a folder: links are followed, hidden files are passed over, names are in order."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path


def refuse(file: Path, problem: str) -> None:
    raise ValueError(f"{file} {problem}")


def visible_files(path: Path, report: Callable[[Path, str], None] = refuse) -> Iterator[Path]:
    """Yield all files below a folder, without hidden ones: macOS leaves ._NAME next to NAME.

    Linked files and folders count as what they link to; a folder that links back to one above it
    is entered once.  `report` gets what cannot be followed or listed, and why; by default
    ValueError.
    """

    def unreadable(problem: OSError) -> None:
        report(Path(problem.filename), f"cannot be listed ({problem.strerror or problem})")

    entered: set[str] = set()
    for place, folders, names in os.walk(path, followlinks=True, onerror=unreadable):
        real = os.path.realpath(place)
        if real in entered:
            folders.clear()
            continue
        entered.add(real)
        folders[:] = sorted((f for f in folders if not f.startswith(".")), key=natural)
        for file in (Path(place, name) for name in sorted(names, key=natural)):
            if file.name.startswith("."):
                continue
            if not file.exists():
                report(
                    file,
                    f"is a link to what is not there ({os.readlink(file)}); get that file "
                    f"(git annex get, git lfs pull), or remove the link",
                )
            elif file.is_file():
                yield file


def natural(name: str) -> tuple[tuple[int, str], ...]:
    """Order names with their numbers as numbers: frame_9 before frame_10."""
    parts = re.findall(r"\d+|\D+", name)
    return tuple((int(part), "") if part.isdecimal() else (-1, part) for part in parts)


def has_suffix(file: Path, suffixes: tuple[str, ...]) -> bool:
    """Compare a suffix without regard to case."""
    return file.suffix.lower() in suffixes
