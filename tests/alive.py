"""Whether processes run, as Linux tells."""

import time
from collections.abc import Sequence
from pathlib import Path


def is_alive(process: int) -> bool:
    """Whether it runs; one that has ended and that nobody waited for does not."""
    try:
        return ") Z" not in Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False


def all_end(processes: Sequence[int], seconds: float) -> bool:
    """Wait until none of them runs; False where one still does after so many seconds."""
    until = time.monotonic() + seconds
    while any(map(is_alive, processes)) and time.monotonic() < until:
        time.sleep(0.02)
    return not any(map(is_alive, processes))
