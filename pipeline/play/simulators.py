"""The real world behind a set of recordings, to be set to a recorded state and stepped."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from data.actions import ActionSpec
from data.shards import Recordings


class Simulator(Protocol):
    """What play and evaluation rely on. S numbers of a state."""

    def reset(self, state: np.ndarray, velocity: np.ndarray) -> None:
        """Put the world at a state (S,), its agent at a velocity (2,) in units a second."""
        ...

    def step(self, action: np.ndarray) -> None:
        """Take one action in the environment's units."""
        ...

    def coverage(self) -> float:
        """Give the share of the goal that is covered."""
        ...

    def render(self, size: int) -> np.ndarray:
        """Draw (size, size, 3) uint8."""
        ...


class Toy:
    """The toy world (data/toy.py); it has no velocity."""

    def __init__(self, actions: ActionSpec) -> None:
        from data.toy import ToyWorld

        self._make = lambda state: ToyWorld(state, actions)
        self._world = self._make(np.zeros(5))

    def reset(self, state: np.ndarray, velocity: np.ndarray) -> None:
        self._world = self._make(state)

    def step(self, action: np.ndarray) -> None:
        self._world.step(action)

    def coverage(self) -> float:
        return self._world.coverage()

    def render(self, size: int) -> np.ndarray:
        return self._world.render(size)


def open_simulator(recordings: Recordings) -> Simulator:
    """Give the simulator that made the recordings; ValueError where there is none."""
    source = str(recordings.description.get("source", "unknown"))
    if not recordings.has("states"):
        raise ValueError(
            f"{recordings.folder} holds no simulator states, so no simulator can be set beside; "
            f"leave --beside-simulator out"
        )
    if source.startswith("toy"):
        return Toy(recordings.actions)
    from data.pusht.simulator import STATE_NAMES, PushT

    if recordings.state_names == STATE_NAMES:
        return PushT(recordings.image_size[0])
    raise ValueError(
        f"no simulator is known for {recordings.folder} (source {source!r}, states "
        f"{', '.join(recordings.state_names)}); leave --beside-simulator out"
    )
