"""How one of several training processes ends."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch.distributed as dist

GLOO_THREADS = "pt_gloo"  # how PyTorch names the threads that speak with other processes


def shutdown_distributed() -> None:
    """Leave the process group, at the very end of this process.

    Threads that speak with them must not outlive what they use.  Not after an error, where the
    others may never answer.
    """
    if dist.is_initialized() and not hasattr(sys, "last_value"):
        dist.destroy_process_group()
        wait_for_threads(GLOO_THREADS)


def wait_for_threads(name: str) -> None:
    """Wait until no thread of this process whose name begins so is at work (Linux tells).

    The threads of gloo live as long as anything remembers the group, and sharded tensors are
    remembered in many places.  One that has yet to let go of a tensor needs the interpreter for
    it, and aborts the process where that is being taken down.
    """
    quiet_polls = 0
    while (
        quiet_polls < 2
    ):  # who waited for the interpreter at the first look has had it by the second
        time.sleep(0.01)
        busy = any(_is_running(thread, name) for thread in Path("/proc/self/task").glob("*"))
        quiet_polls = 0 if busy else quiet_polls + 1


def _is_running(thread: Path, name: str) -> bool:
    try:
        thread_name, thread_state = (thread / "stat").read_text().split("(", 1)[1].rsplit(") ", 1)
    except OSError:  # it ended
        return False
    return thread_name.startswith(name) and not thread_state.startswith("S")
