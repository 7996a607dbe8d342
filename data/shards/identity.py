"""The identity of recorded data: its size and a digest of its contents, wherever it lies."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from data.io.digests import file_digest

FIRST_KEYS = ("source", "recordings", "settings", "env")  # the others follow from these
LATER_KEYS = ("recordings", "split_min_frames")  # which older shards do not have
MAX_LENGTH = 60  # characters of a value in a message


def digest_of(path: Path, files: Iterable[Path]) -> dict[str, Any]:
    """Return {"bytes", "sha256"} of the files that lie at `path`, or below it.

    The digest is that of the sorted (relative name, size, digest) of each. Neither the place nor
    the times of files count: a copy elsewhere is the same data. ValueError names a file that cannot
    be read.
    """
    found = sorted(files)
    sizes = [_stat(file).st_size for file in found]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # hashlib frees the lock
        digests = list(pool.map(readable_digest, found))
    together = hashlib.sha256()
    for file, size, digest in zip(found, sizes, digests, strict=True):
        name = os.path.relpath(file, path).replace(os.sep, "/")
        together.update(f"{name}\0{size}\0{digest}\n".encode(errors="surrogateescape"))
    return {"bytes": sum(sizes), "sha256": together.hexdigest()}


def readable_digest(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hex digits; ValueError where it is unreadable."""
    try:
        return file_digest(path)
    except OSError as problem:
        raise _unreadable(path, problem) from None


def describe_change(old: dict[str, Any], new: dict[str, Any], folder: Path) -> str:
    """Say what differs between the description of the shards in `folder` and the one of now.

    Empty where nothing does. Shards that do not say what they were made from are taken for those of
    these recordings: they are older than that.
    """
    for key in [*FIRST_KEYS, *(old | new)]:
        before, now = old.get(key), new.get(key)
        if before == now or (key in LATER_KEYS and before is None):
            continue
        if key == "recordings" and now:
            return _describe_recordings(before or {}, now, folder)
        if isinstance(before, dict) and isinstance(now, dict):
            differing = next(k for k in now | before if before.get(k) != now.get(k))
            key, before, now = f"{key} {differing}", before.get(differing), now.get(differing)
        return f"{folder} holds shards with {key} {_short(before)}, but now it is {_short(now)}"
    return ""


def as_stored(new: dict[str, Any], known: dict[str, Any] | None) -> dict[str, Any]:
    """Leave out of a description what the existing shards were made without."""
    if known is None:
        return new
    absent = [key for key in LATER_KEYS if key not in known["description"]]
    return {key: value for key, value in new.items() if key not in absent}


def _describe_recordings(before: dict[str, Any], now: dict[str, Any], folder: Path) -> str:
    name = now.get("name", "the source")
    for unit in ("episodes", "recordings", "frames", "bytes"):
        if before.get(unit) != now.get(unit):
            counts = now.get(unit), before.get(unit)
            return (
                f"{name} now has {counts[0]} {unit}, and the shards in {folder} are of {counts[1]}"
            )
    if before.get("sha256") == now.get("sha256"):
        return f"the shards in {folder} were made from {before.get('name')}, not {name}"
    return f"{name} has other content than when the shards in {folder} were made"


def _short(value: Any) -> str:
    text = "the default" if value is None else str(value)  # defaults are not stored
    return text if len(text) <= MAX_LENGTH else f"{text[:MAX_LENGTH]}..."


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as problem:
        raise _unreadable(path, problem) from None


def _unreadable(path: Path, problem: OSError) -> ValueError:
    return ValueError(f"{path} cannot be read ({problem.strerror or problem})")
