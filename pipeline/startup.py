"""The first lines of a script, before its imports, which take seconds: how it ends if it has to.

    if __name__ in ("__main__", "__mp_main__"):  # a script, or a worker process of one
        from pipeline.startup import start

        start(__name__)

It imports nothing but small modules of the standard library.
"""

from __future__ import annotations

import os
import select
import signal
import sys
from contextlib import suppress
from typing import NoReturn

INTERRUPTED, BROKEN_PIPE = 130, 141  # exit codes, as a shell gives them: 128 and the signal
SIGNALS = (signal.SIGINT, signal.SIGTERM)

_started = False


def start(name: str) -> None:
    """Prepare a script, the module of this `name`; of a worker process, leave signals to its
    parent."""
    global _started
    if name != "__main__":
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        return
    _started = True
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):  # names of files need not be text in any encoding
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    for number in SIGNALS:
        # an exception could be caught, or become another one, by what is being imported
        _handle(number, lambda *_: os._exit(_report_stop()))
    try:
        import fcntl  # noqa: F401
    except ImportError:
        end(1, "error: dreamstage runs on Linux and macOS; on Windows, run it inside WSL")


def interruptible() -> None:
    """After the imports: let SIGINT and SIGTERM raise KeyboardInterrupt in the main thread."""
    if _started:
        for number in SIGNALS:
            _handle(number, signal.default_int_handler)


def uninterruptible() -> None:
    """At the end: let a second signal end the process without a trace."""
    if _started:
        for number in SIGNALS:
            _handle(number, signal.SIG_DFL)


def end_interrupted() -> NoReturn:
    """Exit after a KeyboardInterrupt, with one line that says how to resume."""
    uninterruptible()
    raise SystemExit(_report_stop())


def end(code: int, line: str) -> NoReturn:
    """Exit with a line for the user, if anybody reads it."""
    with suppress(OSError):
        print(line, file=sys.stderr, flush=True)
    if output_is_closed():
        _discard_output()
    raise SystemExit(code)


def end_unread() -> NoReturn:
    """Exit without a word, as the reader of the output has ended (`| head`)."""
    _discard_output()
    raise SystemExit(BROKEN_PIPE)


def output_is_closed() -> bool:
    """Whether stdout or stderr is a pipe that nobody reads any more."""
    poll = select.poll()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # not a file, as under test
            poll.register(stream.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _handle(number: int, handler: object) -> None:
    if signal.getsignal(number) is not signal.SIG_IGN:  # a job of a shell that ignores it
        signal.signal(number, handler)  # type: ignore[arg-type]


def _report_stop() -> int:
    again = "without --restart" if "--restart" in sys.argv else "again"
    with suppress(OSError):
        print(f"stopped; run the same command {again} to resume", file=sys.stderr, flush=True)
    return INTERRUPTED


def _open_closed_streams() -> None:
    """Open /dev/null in the place of each standard stream that is closed (`>&-`): else the next
    file that is opened takes its number, and whatever is printed."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", closefd=False))


def _discard_output() -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        os.dup2(null, number)
