"""Segments of a recording: sources of their own, where there are too few recordings to hold one
out."""

from __future__ import annotations

from itertools import pairwise

SEGMENTS = 10


def segment_bounds(length: int, gap: int) -> list[tuple[int, int]]:
    """Cut `length` frames into SEGMENTS ranges [start, stop), with `gap` frames between two."""
    edges = [length * number // SEGMENTS for number in range(SEGMENTS + 1)]
    return [(start + (gap if start else 0), stop) for start, stop in pairwise(edges)]
