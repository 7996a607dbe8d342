"""The real world behind a set of recordings, to be set to a recorded state and stepped."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from data.actions import ActionSpec
from data.shards import EpisodeDataset


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


class ToySimulator:
    """The toy world (data/toy.py); it has no velocity."""

    def __init__(self, actions: ActionSpec) -> None:
        from data.toy import ToyPushT

        self._make = lambda state: ToyPushT(state, actions)
        self._world = self._make(np.zeros(5))

    def reset(self, state: np.ndarray, velocity: np.ndarray) -> None:
        self._world = self._make(state)

    def step(self, action: np.ndarray) -> None:
        self._world.step(action)

    def coverage(self) -> float:
        return self._world.coverage()

    def render(self, size: int) -> np.ndarray:
        return self._world.render(size)


def open_simulator(dataset: EpisodeDataset) -> Simulator:
    """Give the simulator that made the recordings; ValueError where there is none."""
    source = str(dataset.description.get("source", "unknown"))
    if not dataset.has("states"):
        raise ValueError(
            f"{dataset.folder} holds no simulator states, so no simulator can be set beside; "
            f"leave --beside-simulator out"
        )
    if source.startswith("toy"):
        return ToySimulator(dataset.actions)
    from data.pusht.simulator import STATE_NAMES, PushT

    if dataset.state_names == STATE_NAMES:
        return PushT(dataset.image_size[0])
    raise ValueError(
        f"no simulator is known for {dataset.folder} (source {source!r}, states "
        f"{', '.join(dataset.state_names)}); leave --beside-simulator out"
    )
