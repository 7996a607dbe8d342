"""What is said of NaN and infinity in imported arrays.

A step cannot be taken out: the actions around the gap would lead to other frames than theirs.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from data.formats.raw_episodes import RawEpisodes
from data.io.messages import first_few

WAY_OUT = "end the episode before such a step and begin a new one after it, or move the file away"


def first_not_finite(values: np.ndarray) -> str:
    """Return the step, and the column if it has several, of the first NaN or infinity of an array
    (T, ...); empty if there is none."""
    if values.dtype.kind != "f" or np.isfinite(values).all():
        return ""
    step, *column = np.argwhere(~np.isfinite(values))[0].tolist()
    return f"step {step}" + (f", column {', '.join(map(str, column))}" if column else "")


def check_finite(raw: RawEpisodes, fields: Iterable[str]) -> None:
    """ValueError names all episodes with NaN or infinity in one of these fields."""
    faults: dict[str, str] = {}
    for number in range(len(raw.lengths)):
        for name in fields:
            if place := first_not_finite(raw.read(number, name)):
                fault = f"NaN or infinity in its {name} at {place}"
                faults.setdefault(raw.location(number), fault)
    if faults:
        (where, fault), *others = faults.items()
        also = f", and {first_few(other for other, _ in others)} too" if others else ""
        raise ValueError(f"{where} has {fault}{also}; {WAY_OUT}")
