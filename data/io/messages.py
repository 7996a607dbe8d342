"""Parts of messages that stay short, however much there is to say."""

from __future__ import annotations

import shlex
from collections.abc import Iterable

FEW = 5  # items of a list that are named
LONGEST = 200  # characters of another library's error


def first_few(items: Iterable[object], few: int = FEW, separator: str = ", ") -> str:
    """Join the first `few` items, and say how many more there are: "a, b, c and 397 more"."""
    listed = [str(item) for item in items]
    if len(listed) <= few + 1:  # "and 1 more" is as long as the one
        return separator.join(listed)
    return f"{separator.join(listed[:few])} and {len(listed) - few} more"


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: "1 shard", "2 shards"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def command(script: str, *words: object) -> str:
    """Return a command to copy, quoted for a shell: python train_dynamics.py --run 'my runs/a'."""
    return f"python {script} {shlex.join(map(str, words))}"


def one_line(problem: BaseException) -> str:
    """Return what an exception says on one line, cut where it is long."""
    return shortened(str(problem)) or type(problem).__name__


def shortened(text: str) -> str:
    """Return a text of another library or a server on one line, cut where it is long."""
    line = " ".join(text.split())
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}..."
