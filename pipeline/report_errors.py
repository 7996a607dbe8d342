"""What a script says where it ends early: one line for a user's mistake, and a non-zero exit.

DREAMSTAGE_TRACEBACK=1 in the environment shows the stack trace instead.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable

from pipeline import presets, startup

# What gloo, NCCL and the store of torchrun say of a process that cannot be reached any more.
PEER_GONE = re.compile(
    "Connection (reset|closed) by peer|remote process exited|Broken pipe|recvValue failed|"
    "Timed out waiting [^.;]*"
)


def report_errors(body: Callable[[], None]) -> None:
    """Run a script's work; a user's mistake ends it with one line, an interruption with its own."""
    startup.interruptible()
    try:
        body()
        sys.stdout.flush()
    except presets.NoStage as nothing:
        print(nothing)
    except (ValueError, OSError, MemoryError, RuntimeError) as problem:
        if isinstance(problem, BrokenPipeError) and startup.output_is_closed():
            startup.end_unread()
        line = _describe(problem)
        if line is None or os.environ.get("DREAMSTAGE_TRACEBACK"):
            raise
        startup.end(1, f"error: {line}")
    except KeyboardInterrupt:
        startup.end_interrupted()


def _describe(problem: Exception) -> str | None:
    """Say in one line what a user can do something about; None for a fault of ours."""
    text = str(problem)
    if isinstance(problem, MemoryError) or re.search("can't allocate memory|out of memory", text):
        found = re.search(r"allocate (\d[\d.]* \w+)", text)
        wanted = f" ({found[1]} at once)" if found else ""
        return f"there is not enough memory{wanted}; give a smaller size or batch, or fewer workers"
    if isinstance(problem, RuntimeError):
        gone = PEER_GONE.search(text)
        return gone and (
            f"another process of this job has ended or cannot be reached ({gone[0]}); its last "
            f"checkpoint is kept: run the same command again, on any number of processes"
        )
    if isinstance(problem, BrokenPipeError):
        return f"{problem.strerror}: another process of this command has ended"
    if isinstance(problem, OSError) and problem.errno and not problem.filename:
        return f"{problem.strerror}, on standard output"
    return text
