"""How long a request would wait for those before it, from how long such batches took.

A queue of fixed length lasts longer on a slow machine than a client waits.  What cannot be answered
in time is refused at once, so that the model computes nothing that comes too late.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from statistics import median_low

from pipeline.serve.jobs import Group, Work
from pipeline.serve.service_config import bucket_of

REMEMBERED = 5  # batches of a size; of two or more, one that took very long changes nothing
SHARE = 0.5  # of a deadline that others may use up: batches do not all take equally long


class WaitingTime:
    """Seconds that the model takes for a batch, by group and size."""

    def __init__(self, max_batch: int) -> None:
        self._max_batch = max_batch
        self._taken: dict[Group, dict[int, deque[float]]] = defaultdict(
            lambda: defaultdict(lambda: deque(maxlen=REMEMBERED))
        )

    def took(self, batch: Sequence[Work], seconds: float) -> None:
        """Learn from a batch of one group, of `seconds` from when it could begin."""
        steps, rows = _steps_and_rows(batch)
        self._taken[batch[0].group][bucket_of(rows)].append(seconds / steps)

    def of(self, batch: Sequence[Work]) -> float:
        """Seconds of a batch of one group; 0 where it is empty, or nothing is known of its kind."""
        if not batch:
            return 0.0
        steps, rows = _steps_and_rows(batch)
        return steps * self._each(batch[0].group, rows)

    def before(self, queue: Sequence[Work], group: Group) -> float:
        """Seconds of all batches that are answered before a request of `group` that comes now."""
        waiting: dict[Group, list[Work]] = defaultdict(list)
        for work in queue:
            waiting[work.group].append(work)
        return sum(self._batches(works, other == group) for other, works in waiting.items())

    def _batches(self, works: list[Work], is_own: bool) -> float:
        """is_own: the last batch, if it is not full, is that of the request itself."""
        most = 1 if works[0].kind == "plan" else self._max_batch
        end = len(works) - (len(works) % most if is_own else 0)
        return sum(self.of(works[i : min(i + most, end)]) for i in range(0, end, most))

    def _each(self, group: Group, count: int) -> float:
        if group not in self._taken:
            return 0.0
        sizes, size = self._taken[group], bucket_of(count)
        nearest = size if size in sizes else max([s for s in sizes if s < size] or [min(sizes)])
        # of batches that were not seen yet: 32 take 5 to 9 times as long as one
        return median_low(sizes[nearest]) * max(1.0, (size / nearest) ** 0.5)


def _steps_and_rows(batch: Sequence[Work]) -> tuple[int, int]:
    """Steps of the longest, and how many rows a step has on average: a rollout that has ended
    leaves the batch."""
    steps = max(work.units for work in batch)
    return steps, -(-sum(work.units for work in batch) // steps)
