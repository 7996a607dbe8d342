"""Time a job, or a stage script, in a process of its own, so that its memory is its own."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

R = TypeVar("R")
ROOT = Path(__file__).parents[2]


def alone(job: Callable[..., R], *given: Any) -> tuple[float, R, float]:
    """Do it in a process of its own: seconds, what it gives, MiB at its peak."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_timed, job, *given).result()


def _timed(job: Callable[..., R], *given: Any) -> tuple[float, R, float]:
    begun = time.perf_counter()
    found = job(*given)
    taken = time.perf_counter() - begun
    return taken, found, _peak()


def _peak() -> float:
    """MiB that this process had at most.  Linux counts what its parent had in `ru_maxrss`, since a
    process begins as a copy of it; not so in its status."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.findall(r"VmHWM:\s+(\d+)", status.read_text())[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # macOS: bytes


def run_stage(name: str, run: Path, *given: str) -> tuple[float, float]:
    """Run a stage script: seconds, and MiB at the peak of its process, or of this one if that is
    more; ValueError if it fails.

    name: of the script, and of what it is about, such as "preprocess pusht".
    """
    script, *about = name.split()
    command = [sys.executable, str(ROOT / f"{script}.py"), *about, "--run", str(run), *given]
    begun = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise ValueError(
            f"{' '.join(command)} ended with {process.returncode}; its message is above"
        )
    return time.perf_counter() - begun, usage.ru_maxrss / 1024
