"""The memory that there is, and how sizes are written."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

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


def as_size(size: float) -> str:
    """Write bytes with a binary prefix: 1536 -> "1.5 KiB"."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB", "PiB"):
        if size < 1024 or unit == "PiB":
            break
        size /= 1024
    return f"{size:.4g} {unit}"
