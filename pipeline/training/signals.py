"""SIGINT and SIGTERM as a question: stop?"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def asked_to_stop(answer: Callable[[], None]) -> Iterator[None]:
    """Call `answer` at every SIGINT and SIGTERM, where signals reach us at all."""

    def ask(number: int, frame: object) -> None:
        answer()

    wanted = (signal.SIGINT, signal.SIGTERM)
    try:
        before = {s: signal.signal(s, ask) for s in wanted}
    except ValueError:  # not in the main thread: a test or a notebook
        before = {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
