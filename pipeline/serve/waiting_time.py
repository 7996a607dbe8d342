"""How long a request would wait for those before it, from how long such batches took.

A queue of fixed length lasts longer on a slow machine than a client waits.  What cannot be answered
in time is refused at once, so that the model computes nothing that comes too late.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
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
        each = seconds / batch[0].units  # a plan is a batch of its own
        self._taken[batch[0].group][bucket_of(len(batch))].append(each)

    def of(self, batch: Sequence[Work]) -> float:
        """Seconds of a batch of one group; 0 where it is empty, or nothing is known of its kind."""
        return batch[0].units * self._each(batch[0].group, len(batch)) if batch else 0.0

    def before(self, queue: Sequence[Work], group: Group) -> float:
        """Seconds of all batches that are answered before a request of `group` that comes now."""
        plans = sum(self.of([work]) for work in queue if work.kind == "plan")
        counts = Counter(work.group for work in queue if work.kind != "plan")
        return plans + sum(self._batches(other, n, other == group) for other, n in counts.items())

    def _batches(self, group: Group, count: int, is_own: bool) -> float:
        """is_own: the last batch, if it is not full, is that of the request itself."""
        full, rest = divmod(count, self._max_batch)
        seconds = full * self._each(group, self._max_batch)
        return seconds if is_own or not rest else seconds + self._each(group, rest)

    def _each(self, group: Group, count: int) -> float:
        if group not in self._taken:
            return 0.0
        sizes, size = self._taken[group], bucket_of(count)
        nearest = size if size in sizes else max([s for s in sizes if s < size] or [min(sizes)])
        # of batches that were not seen yet: 32 take 5 to 9 times as long as one
        return median_low(sizes[nearest]) * max(1.0, (size / nearest) ** 0.5)
