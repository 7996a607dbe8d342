"""The simulator that made a dataset, which can be set to a step of the dataset and stepped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from data.actions import ActionSpec
from data.gym.env_spec import env_spec_of
from data.shards.episode_dataset import EpisodeDataset
from models.action_map import ActionMap

if TYPE_CHECKING:
    from pipeline.play.player import Start

SOLVED = 0.95
"""Coverage at which Push-T's task is solved (SUCCESS_COVERAGE in data/pusht/simulator.py, which is
not loaded before a simulator is opened)."""


class Simulator(Protocol):
    """What play relies on."""

    def reset(self, start: Start) -> None:
        """Go to where an episode of the dataset is at a start."""
        ...

    def step(self, action: np.ndarray) -> None:
        """Take one action in the environment's units."""
        ...

    def coverage(self) -> float | None:
        """Return the fraction of the goal that is covered; None where there is no such goal."""
        ...

    @property
    def ended(self) -> bool:
        """The episode is over, and nothing moves any more."""
        ...

    def status(self) -> str:
        """Say in a word or two how it stands."""
        ...

    def place(self) -> np.ndarray | None:
        """Return the agent's place, (2,), in the units of actions that are places; else None."""
        ...

    def render(self, size: int) -> np.ndarray:
        """Render (size, size, 3) uint8."""
        ...


class StateSimulator:
    """A world whose states are in the dataset: Push-T, or the toy world modeled on it."""

    ended = False

    def __init__(self, world: Any) -> None:
        self.world = world

    def reset(self, start: Start) -> None:
        assert start.state is not None, "open_simulator checks that there are states"
        self.world.reset(start.state, start.velocity, start.goal)

    def step(self, action: np.ndarray) -> None:
        self.world.step(action)

    def coverage(self) -> float:
        return self.world.coverage()

    def place(self) -> np.ndarray:
        return self.world.state[:2]

    def status(self) -> str:
        return f"coverage {self.coverage():.2f}"

    def render(self, size: int) -> np.ndarray:
        return self.world.render(size)


class ToySimulator:
    """The toy world (data/toy.py); it has no velocity."""

    def __init__(self, actions: ActionSpec) -> None:
        from data.toy import ToyPushT

        self._make = lambda state: ToyPushT(state, actions)
        self._world = self._make(np.zeros(5))

    def reset(
        self, state: np.ndarray, velocity: np.ndarray, goal: np.ndarray | None = None
    ) -> None:
        self._world = self._make(state)

    def step(self, action: np.ndarray) -> None:
        self._world.step(action)

    def coverage(self) -> float:
        return self._world.coverage()

    def render(self, size: int) -> np.ndarray:
        return self._world.render(size)

    @property
    def state(self) -> np.ndarray:
        return self._world.state


class MappedSimulator:
    """A simulator that is stepped by latent actions, through a map to its own."""

    def __init__(self, simulator: Simulator, action_map: ActionMap) -> None:
        self.simulator, self.action_map = simulator, action_map
        self.reset, self.render = simulator.reset, simulator.render
        self.coverage, self.status, self.place = (
            simulator.coverage, simulator.status, simulator.place,
        )  # fmt: skip

    @property
    def ended(self) -> bool:
        return self.simulator.ended

    def step(self, action: np.ndarray) -> None:
        place = self.place()
        places = None if place is None else torch.from_numpy(place[None]).float()
        self.simulator.step(
            self.action_map.to_true(torch.as_tensor(action)[None], places)[0].numpy()
        )


def episode_goal(dataset: EpisodeDataset, episode: int) -> np.ndarray | None:
    """Return the goal's pose of an episode that has its own, (3,); None where all have one."""
    note = dataset.notes[episode]
    if "goal" not in note:
        return None
    from data.pusht.simulator import goal_of

    return goal_of(note)


def open_simulator(dataset: EpisodeDataset, flags: str = "--compare-simulator") -> Simulator:
    """Return the simulator that made the dataset; ValueError where there is none.

    flags: what asked for it, for the message.
    """
    env_spec = env_spec_of(dataset.description)
    if env_spec is not None:
        from pipeline.play.gym_simulator import GymSimulator

        return GymSimulator(dataset, env_spec)
    source = str(dataset.description.get("source", "unknown"))
    if not dataset.has("states"):
        raise ValueError(
            f"{dataset.folder} holds no simulator states, so no simulator can be set to its "
            f"frames; remove {flags}"
        )
    if source.startswith("toy"):
        return StateSimulator(ToySimulator(dataset.actions))
    from data.pusht.simulator import ACTIONS, STATE_NAMES, PushT, goal_of

    # other recordings may have the names, but not the units
    if dataset.state_names == STATE_NAMES and dataset.actions == ACTIONS:
        return StateSimulator(PushT(dataset.image_size[0], goal_of(dataset.description)))
    raise ValueError(
        f"no simulator is known for {dataset.folder} (source {source!r}, states "
        f"{', '.join(dataset.state_names)}); remove {flags}"
    )


def find_simulator(dataset: EpisodeDataset, flags: str, optional: bool) -> Simulator | None:
    """Open the dataset's simulator; None where no flag requires it, and it is not known."""
    if not flags and not optional:
        return None
    try:
        return open_simulator(dataset, flags)
    except ValueError:
        if flags:
            raise
        return None
