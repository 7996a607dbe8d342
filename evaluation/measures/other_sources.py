"""For each clip another one, of another source."""

from __future__ import annotations

import numpy as np


def other_sources(sources: np.ndarray, shift: int) -> np.ndarray:
    """Give for each clip the index of one of another source: (n,) -> (n,) int64.

    It lies `shift` behind the clip, or as little further as it has to; where all are of one source
    it is of the same.
    """
    n = len(sources)
    found = (np.arange(n) + shift) % n
    for _ in range(n):
        same = sources[found] == sources
        if not same.any():
            break
        found = np.where(same, (found + 1) % n, found)
    return found
