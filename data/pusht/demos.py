"""The human Push-T demonstrations as a source of episodes, drawn from their states."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from data.pusht.demo_data import load_demos
from data.pusht.simulator import (
    ACTIONS,
    STATE_NAMES,
    STEPS_PER_SECOND,
    SUCCESS_COVERAGE,
    PushT,
    reward,
)
from data.pusht.task_goal import Goal, as_pose
from data.shards.episodes import Episode


class FromDemos(Protocol):
    """A source made of demonstrations."""

    @property
    def path(self) -> str: ...

    @property
    def goal(self) -> Goal | None: ...


def describe_demos(source: FromDemos) -> dict[str, Any]:
    """Return what the description of a source tells of its demonstrations: settings, the
    identity of the recordings, and a goal that is not the task's own."""
    path = Path(source.path)
    demos = load_demos(path)
    digest = hashlib.sha256()
    for values in (demos.states, demos.actions, demos.contacts, demos.episode_ends):
        digest.update(b"-" if values is None else np.ascontiguousarray(values).tobytes())
    recordings = {
        "name": path.name,
        "episodes": len(demos.episode_ends),
        "frames": len(demos.states),
        "sha256": digest.hexdigest(),  # of the arrays, which a zip, a folder and an npz share
    }
    settings = asdict(source) | {"path": path.name}  # type: ignore[call-overload]
    del settings["goal"]
    if not settings.get("random_goal"):  # older shards do not know it
        settings.pop("random_goal", None)
    goal = {} if source.goal is None else {"goal": list(source.goal)}
    return {"settings": settings, "recordings": recordings} | goal


@dataclass(frozen=True)
class Demonstrations:
    """The demonstrations, rendered from their states at `image_size`.

    A demonstration has no state after its last action, with which some succeed: the simulator
    executes that action, and its outcome is the last frame.

    Frames are rendered at 96 pixels too: the images of the store are resized in another way (see
    `PushT.render`), and dataset and simulator must look alike.
    """

    path: str
    image_size: int = 64
    episodes_per_shard: int = 26
    goal: Goal | None = None
    """Where the block belongs, if that is not the task's own goal."""

    @property
    def num_sources(self) -> int:
        return len(load_demos(Path(self.path)).episode_ends)

    @property
    def source_lengths(self) -> list[int]:
        """Frames of each demonstration, with the one that its last action leads to."""
        ends = load_demos(Path(self.path)).episode_ends
        return (np.diff(ends, prepend=0) + 1).tolist()

    @property
    def num_shards(self) -> int:
        return -(-self.num_sources // self.episodes_per_shard)

    def description(self) -> dict[str, Any]:
        return {
            "source": "human demonstrations",
            "image_size": [self.image_size, self.image_size],
            "actions": ACTIONS.as_dict(),
            "state_names": list(STATE_NAMES),
            "success": SUCCESS_COVERAGE,
            "images": "rendered from the states",
            "last_frame": "the last action, executed in the simulator",
        } | describe_demos(self)

    def make_shard(self, index: int) -> list[Episode]:
        first = index * self.episodes_per_shard
        simulator = PushT(self.image_size, as_pose(self.goal))
        last = min(first + self.episodes_per_shard, self.num_sources)
        return [self.episode(simulator, number) for number in range(first, last)]

    def episode(self, simulator: PushT, number: int) -> Episode:
        demos = load_demos(Path(self.path))
        rows = demos.rows(number)
        states, actions = demos.states[rows], demos.actions[rows].astype(np.float32)
        previous = states[-2] if len(states) > 1 else states[-1]
        simulator.reset(states[-1], (states[-1] - previous)[:2] * STEPS_PER_SECOND)
        simulator.step(actions[-1])
        contacts = None
        if demos.contacts is not None:
            contacts = np.append(demos.contacts[rows], simulator.contacts).astype(np.float32)
        states = np.concatenate([states, simulator.state[None]])
        frames, rewards = [], []
        for state in states:
            simulator.reset(state)
            rewards.append(float(reward(simulator.coverage())))
            frames.append(simulator.render())
        terminals = np.zeros(len(states), bool)
        terminals[-1] = rewards[-1] >= 1
        return Episode(
            frames=np.stack(frames),
            actions=np.concatenate([actions, actions[-1:]]),
            source=number,
            rewards=np.array(rewards, np.float32),
            terminals=terminals,
            states=states.astype(np.float32),
            contacts=contacts,
        )
