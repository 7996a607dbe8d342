"""Sizes that are refused before work begins."""

from __future__ import annotations

import math

from data.io.memory import as_size, memory_bytes

MAX_EPISODES = 10**6  # of one path
SHARE = 0.2  # of the memory that one array of one episode may take: it is copied thrice


def check_fits(shape: tuple[int, ...], itemsize: int, name: str, where: str) -> None:
    """Refuse an array of one episode that would not fit into memory."""
    size = math.prod(shape) * itemsize
    if size > SHARE * memory_bytes():
        raise ValueError(
            f"{where} has {name} of {shape}, {as_size(size)}, which is too much for one episode on "
            f"a machine with {as_size(memory_bytes())} of memory; store shorter episodes, or get "
            f"the file again if it should be smaller"
        )


def check_count(episodes: int, where: str) -> None:
    """Refuse more episodes than anyone records, as a damaged file may declare them."""
    if episodes > MAX_EPISODES:
        raise ValueError(
            f"{where} declares {episodes} episodes, and at most {MAX_EPISODES} are read; get the "
            f"file again, or import it in parts"
        )
