"""Sizes that are refused before work begins."""

from __future__ import annotations

import math
import os
from functools import lru_cache
from pathlib import Path

MAX_EPISODES = 10**6  # of one path
SHARE = 0.2  # of the machine's memory that one array of one episode may take: it is copied thrice


CGROUP_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


@lru_cache(maxsize=1)
def memory_bytes() -> int:
    """Return the memory that this process may use, in bytes: the machine's, or the container's."""
    limit = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for path in CGROUP_LIMITS:
        try:
            limit = min(limit, int(path.read_text()))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return limit


def check_fits(shape: tuple[int, ...], itemsize: int, name: str, where: str) -> None:
    """Refuse an array of one episode that would not fit into memory."""
    size = math.prod(shape) * itemsize
    if size > SHARE * memory_bytes():
        raise ValueError(
            f"{where} has {name} of {shape}, {as_size(size)}, which is too much for one episode on "
            f"a machine with {as_size(memory_bytes())} of memory; store shorter episodes, or get "
            f"the file again if it should be smaller"
        )


def check_count(episodes: int, where: str) -> None:
    """Refuse more episodes than anyone records, as a damaged file may declare them."""
    if episodes > MAX_EPISODES:
        raise ValueError(
            f"{where} declares {episodes} episodes, and at most {MAX_EPISODES} are read; get the "
            f"file again, or import it in parts"
        )


def as_size(size: float) -> str:
    """Write bytes with a binary prefix: 1536 -> "1.5 KiB"."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB", "PiB"):
        if size < 1024 or unit == "PiB":
            break
        size /= 1024
    return f"{size:.4g} {unit}"
