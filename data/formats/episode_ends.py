"""Where the episodes of a recording begin and end.

A time limit ends an episode, and is never a terminal.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from data.formats.field_names import Names
from data.formats.recording import Recording
from data.formats.step_alignment import flat

ENDS = ("terminals", "truncations")


def episode_bounds(
    recording: Recording, names: Names, lacks_row: dict[str, int]
) -> Iterator[tuple[int, int]]:
    """Yield where the episodes of a recording begin and end: as it says, and after each end."""
    total = len(recording.columns[names.stored["frames"]])
    if recording.ends and recording.ends[-1] != total:
        raise ValueError(
            f"{recording.where} says that its last episode ends after {recording.ends[-1]} steps, "
            f"but it holds {total} frames; get it again"
        )
    if recording.needs_ends and not (recording.ends or set(ENDS) & set(names.stored)):
        raise ValueError(
            f"{recording.where} holds {total} steps in a row without where episodes end; add "
            f"ep_len (frames of each episode), or terminals and truncations (a flag a step); if it "
            f"is one episode, give a folder of such files"
        )
    ends = set(recording.ends or (total,))
    if set(ENDS) & set(names.stored):
        flags = _flags(recording, names, lacks_row, total)
        # the last of several in a row: some environments keep saying that they are at the end
        ends |= set((np.flatnonzero(flags[:-1] & ~flags[1:]) + 1).tolist())
    rising = sorted(ends)
    yield from zip([0, *rising[:-1]], rising, strict=True)


def _flags(recording: Recording, names: Names, lacks_row: dict[str, int], total: int) -> np.ndarray:
    """Say of each frame whether an episode ends there, for whatever reason: (T,) bool."""
    flags = np.zeros(total, bool)
    for name in ENDS:
        if name in names.stored:
            values = flat(recording.columns[names.stored[name]].read(0, total))
            if values.ndim != 1 or values.dtype.kind not in "biuf":
                raise ValueError(
                    f"{recording.where} has {name} of {values.dtype} {values.shape}; a flag a step "
                    f"is needed, or --rename {names.stored[name]}="
                )
            flags[lacks_row[name] :] |= values.astype(bool)
    return flags
