"""How a training process ends on a signal."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def stop_on_signal(callback: Callable[[], None]) -> Iterator[None]:
    """Call `callback` at every SIGINT and SIGTERM, where this thread receives signals."""

    def on_signal(number: int, frame: object) -> None:
        callback()

    signals = (signal.SIGINT, signal.SIGTERM)
    try:
        previous = {s: signal.signal(s, on_signal) for s in signals}
    except ValueError:  # not in the main thread: a test or a notebook
        previous = {}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
