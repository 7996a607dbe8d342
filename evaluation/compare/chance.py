"""Which differences of two figures are larger than chance, from their 95% intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence

from evaluation.measures.intervals import Z
from pipeline.hub.figures import Figure

LEVEL = 0.05


def p_value(one: Figure, other: Figure) -> float | None:
    """Give the two-sided p-value of no difference; None where an interval is not known, or has no
    width, as that of equal cases.

    MOVER (Zou and Donner 2008; for Wilson's intervals it is Newcombe's of 1998): the distance from
    each value to the end of its interval that faces the other one is 1.96 standard errors.  It
    takes the cases of the two for independent, which is cautious where both played the same seeds.
    """
    ends = (one.low, one.high, other.low, other.high)
    if any(end is None or not math.isfinite(end) for end in ends):
        return None
    upper, lower = (one, other) if one.value >= other.value else (other, one)
    assert upper.low is not None and lower.high is not None
    reach = math.hypot(upper.value - upper.low, lower.high - lower.value)
    if reach <= 0 or one.low == one.high or other.low == other.high:
        return None
    z = Z * (upper.value - lower.value) / reach
    return math.erfc(z / math.sqrt(2))


def holm(p_values: Sequence[float], level: float = LEVEL) -> list[bool]:
    """Test which of many hypotheses fall, with a chance of `level` that one of them falls wrongly
    (Holm 1979)."""
    order = sorted(range(len(p_values)), key=lambda at: p_values[at])
    fallen = [False] * len(p_values)
    for rank, at in enumerate(order):
        if p_values[at] > level / (len(p_values) - rank):
            break
        fallen[at] = True
    return fallen
