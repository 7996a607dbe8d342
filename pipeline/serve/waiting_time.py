"""How long a request would wait for those before it, from how long such requests took.

A queue of fixed length lasts longer on a slow machine than a client waits.  What cannot be answered
in time is refused at once, so that the model computes nothing that comes too late.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.serve.jobs import Group, Work

NEWEST = 0.2  # weight of the last batch in the moving average
SHARE = 0.5  # of a deadline that others may use up: batches do not all take equally long


class WaitingTime:
    """Seconds that the model takes for a unit of work, by group."""

    def __init__(self) -> None:
        self._seconds: dict[Group, float] = {}

    def took(self, batch: Sequence[Work], seconds: float) -> None:
        """Learn from a batch of one group, of `seconds` from when it could begin."""
        group, each = batch[0].group, seconds / sum(work.units for work in batch)
        before = self._seconds.get(group, each)
        self._seconds[group] = before + NEWEST * (each - before)

    def of(self, works: Sequence[Work]) -> float:
        """Seconds until all are answered; 0 for those of a group that was not asked yet."""
        return sum(work.units * self._seconds.get(work.group, 0.0) for work in works)
