"""How near we are to the least that a computation can take, measured in the same rounds."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from bench.races.pairs import Row, value_row

TARGET, STRETCH = 90.0, 95.0  # percent


def share_of_ceiling(
    area: str, what: str, ours: Sequence[float], ceiling: Sequence[float], of: str
) -> Row:
    """Make a row of our share of a ceiling, and of how long both take.  Both: seconds, by round."""
    share = 100 * median(c / o for c, o in zip(ceiling, ours, strict=True))
    note = f"{1e3 * median(ceiling):.3g} of {1e3 * median(ours):.3g} ms"
    return value_row(
        area,
        f"{what}, share of the ceiling",
        "%",
        share,
        f"({of})",
        TARGET,
        STRETCH,
        len(ours),
        note,
    )
