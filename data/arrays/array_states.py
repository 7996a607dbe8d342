"""Names of the numbers of a simulator state: the files have none, so only the user knows them."""

from __future__ import annotations

import numpy as np

from data.formats.raw_episodes import RawEpisodes
from data.io.messages import first_few

MANY_TURNS = 4 * np.pi  # radians that an angle hardly has, and degrees soon do


def name_states(raw: RawEpisodes, names: tuple[str, ...]) -> tuple[tuple[str, ...], list[str]]:
    """Return the names of the S numbers of a state, and lines for the user.

    names: of --state-names, or none, for `state_0` and so on.  What is named `angle`, or ends so,
    is one, in radians.  ValueError where the names do not fit the states.
    """
    if "states" not in raw.keys:
        if names:
            raise ValueError(
                f"--state-names {' '.join(names)}: {raw.location(0)} has no states; leave the flag "
                f"out, or say which array they are with --rename STORED=states"
            )
        return (), []
    values = raw.read(0, "states")
    if values.ndim != 2:
        raise ValueError(
            f"{raw.location(0)} has states of {values.shape[1:]} a step; (S,) is needed"
        )
    count = values.shape[1]
    if not names:
        names = tuple(f"state_{i}" for i in range(count))
        return names, [f"states are {first_few(names)}; --state-names gives them names"]
    if len(names) != count or len(set(names)) != count or not all(name.strip() for name in names):
        raise ValueError(
            f"--state-names {' '.join(names)}: a state of {raw.location(0)} has {count} numbers, "
            f"and each needs a name of its own; give {count} different names"
        )
    angles = [column for column, name in enumerate(names) if is_angle(name)]
    lines = [f"states are {first_few(names)}; angles, in radians: {_listed(names, angles)}"]
    for column in angles if values.dtype.kind in "iuf" else []:
        if (largest := float(np.abs(values[:, column].astype(np.float64)).max())) > MANY_TURNS:
            lines.append(
                f"warning: {names[column]} reaches {largest:.4g}; if that is in degrees, convert "
                f"it to radians, and write the recordings anew"
            )
    return names, lines


def is_angle(name: str) -> bool:
    """Return whether a number of a state is an angle, by its name."""
    return name.endswith("angle")


def _listed(names: tuple[str, ...], columns: list[int]) -> str:
    return first_few(names[column] for column in columns) or "none (a name that ends in angle)"
