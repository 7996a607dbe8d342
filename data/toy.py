"""A toy world modeled on Push-T, small enough for every test.

A disc runs towards the pointer and pushes a square; the reward is the fraction of the goal that
the square covers. World and action units are those of Push-T: 512 x 512, y down.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.actions import ActionSpec, Factor
from data.shards.build_info import shard_name
from data.shards.episodes import Episode
from data.shards.splits import split_sources
from data.shards.write_shard import write_shard

WINDOW_SIZE, SPEED, RADIUS, HALF_SIDE = 512.0, 40.0, 40.0, 56.0
GOAL = np.array([256.0, 256.0])
STATE_NAMES = ("agent_x", "agent_y", "block_x", "block_y", "block_angle")
POINTER = ActionSpec(
    "continuous",
    ("target_x", "target_y"),
    (0.0, 0.0),
    (WINDOW_SIZE, WINDOW_SIZE),
    "pixels of the 512 x 512 world",
    pointer=True,
)
MOVES = ActionSpec("discrete", ("stay", "left", "right", "up", "down"))
MOVE_VECTORS = np.array([[0, 0], [-1, 0], [1, 0], [0, -1], [0, 1]]) * SPEED
KEYS = ActionSpec(
    "discrete",
    (),
    unit="half steps across",
    factors=(
        Factor("across", ("-2", "-1", "0", "+1", "+2"), (-2.0, -1.0, 0.0, 1.0, 2.0)),
        Factor("move", ("none", "up", "down")),
    ),
)
KEY_VECTORS = np.stack([np.tile([-2, -1, 0, 1, 2], 3), np.repeat([0, -2, 2], 5)], 1) * SPEED / 2
VECTORS = {POINTER: None, MOVES: MOVE_VECTORS, KEYS: KEY_VECTORS}
"""Displacement of the disc for each code; None where the action is a pointer."""


class ToyPushT:
    """The simulator. state: (5,) float64, as STATE_NAMES; the angle stays 0."""

    def __init__(self, state: np.ndarray, actions: ActionSpec = POINTER) -> None:
        self.state = np.array(state, np.float64)
        self.vectors = VECTORS[actions]
        self.contacts = 0.0

    def step(self, action: np.ndarray) -> None:
        """Move at most SPEED towards the pointer, or by a code, and push the square."""
        agent, block = self.state[:2], self.state[2:4]  # views: they change the state in place
        if self.vectors is None:
            move = np.asarray(action) - agent
            agent += move * min(1.0, SPEED / max(float(np.linalg.norm(move)), 1e-9))
        else:
            agent += self.vectors[int(action)]
        agent[:] = np.clip(agent, 0, WINDOW_SIZE)
        offset = block - agent
        overlap = HALF_SIDE + RADIUS - np.abs(offset)
        self.contacts = float((overlap > 0).all())
        if self.contacts:
            axis = int(np.argmin(overlap))
            block[axis] += overlap[axis] * (1.0 if offset[axis] >= 0 else -1.0)
            block[:] = np.clip(block, HALF_SIDE, WINDOW_SIZE - HALF_SIDE)

    def coverage(self) -> float:
        """Return the fraction of the goal's area under the square."""
        return float(np.prod(np.clip(1 - np.abs(self.state[2:4] - GOAL) / (2 * HALF_SIDE), 0, 1)))

    def render(self, size: int) -> np.ndarray:
        """Render (size, size, 3) uint8."""
        y, x = (np.mgrid[:size, :size] + 0.5) * (WINDOW_SIZE / size)
        frame = np.full((size, size, 3), 255, np.uint8)
        for center, color in ((GOAL, (144, 238, 144)), (self.state[2:4], (119, 136, 153))):
            frame[np.maximum(abs(x - center[0]), abs(y - center[1])) < HALF_SIDE] = color
        agent = self.state[:2]
        frame[(x - agent[0]) ** 2 + (y - agent[1]) ** 2 < RADIUS**2] = (65, 105, 225)
        return frame


@dataclass(frozen=True)
class ToyEpisodes:
    """A source of toy episodes: half push the square to the goal, half explore.

    Each has exactly `length` frames; one that ends with the goal half covered is terminal.
    """

    episodes: int = 12
    length: int = 24
    size: int = 32
    seed: int = 0
    discrete: bool = False
    episodes_per_shard: int = 6
    factored: bool = False
    """Actions are KEYS: codes made of factors."""

    @property
    def num_shards(self) -> int:
        return -(-self.episodes // self.episodes_per_shard)

    @property
    def num_sources(self) -> int:
        return self.episodes

    @property
    def actions(self) -> ActionSpec:
        return KEYS if self.factored else MOVES if self.discrete else POINTER

    def description(self) -> dict[str, Any]:
        return {
            "source": "toy",
            "image_size": [self.size, self.size],
            "actions": self.actions.as_dict(),
            "state_names": list(STATE_NAMES),
            "settings": asdict(self),
        }

    def make_shard(self, index: int) -> list[Episode]:
        first = index * self.episodes_per_shard
        numbers = range(first, min(first + self.episodes_per_shard, self.episodes))
        return [self.episode(number) for number in numbers]

    def episode(self, number: int) -> Episode:
        rng = np.random.default_rng((self.seed, number))
        start = np.concatenate([rng.uniform(40, 472, 2), rng.uniform(100, 412, 2), [0.0]])
        simulator = ToyPushT(start, self.actions)
        frames, actions, rewards, states, contacts = [], [], [], [], []
        target = rng.uniform(0, WINDOW_SIZE, 2)
        for step in range(self.length):
            frames.append(simulator.render(self.size))
            rewards.append(simulator.coverage())
            states.append(simulator.state.copy())
            contacts.append(simulator.contacts)
            if number % 2 == 0:
                target = scripted_target(simulator.state)
            elif step % 6 == 5:
                target = rng.uniform(0, WINDOW_SIZE, 2)
            action = np.clip(target + rng.normal(0, 8, 2), 0, WINDOW_SIZE)
            if simulator.vectors is None:
                actions.append(action)
            else:
                actions.append(nearest_code(simulator.state[:2], action, simulator.vectors))
            simulator.step(actions[-1])
        terminals = np.zeros(self.length, bool)
        terminals[-1] = rewards[-1] >= 0.5
        return Episode(
            frames=np.stack(frames),
            actions=np.array(actions, np.float32 if simulator.vectors is None else np.int64),
            source=number,
            rewards=np.array(rewards, np.float32),
            terminals=terminals,
            states=np.array(states, np.float32),
            contacts=np.array(contacts, np.float32),
        )


def scripted_target(state: np.ndarray) -> np.ndarray:
    """Return the target that brings the square nearer to the goal: get behind it, then push."""
    agent, block = state[:2], state[2:4]
    error = GOAL - block
    axis = int(np.argmax(np.abs(error)))
    if abs(error[axis]) < 20:
        return agent.copy()
    contact_distance, sign = HALF_SIDE + RADIUS, float(np.sign(error[axis]))
    along = (agent - block)[axis] * sign
    across = (agent - block)[1 - axis]
    target = block.copy()
    if along < 20 - contact_distance and abs(across) < HALF_SIDE:  # behind it: push
        target[axis] = GOAL[axis] - sign * contact_distance
    elif along < -contact_distance:  # level with its back: align with the middle
        target[axis] = agent[axis]
    else:  # at its side or in front: go around the corner
        target[1 - axis] += np.copysign(contact_distance + 15, across)
        target[axis] -= (
            sign * (contact_distance + 25)
            if abs(across) > contact_distance
            else -(agent - block)[axis]
        )
    return target


def nearest_code(agent: np.ndarray, target: np.ndarray, vectors: np.ndarray) -> int:
    """Return the code whose vector, of (codes, 2), ends nearest to the target."""
    return int(np.argmin(np.linalg.norm(agent + vectors - target, axis=1)))


def write_toy_shards(
    folder: Path | str,
    episodes: int = 12,
    length: int = 24,
    size: int = 32,
    seed: int = 0,
    discrete: bool = False,
    factored: bool = False,
) -> Path:
    """Write toy episodes as shards, six in each, and return the folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    source = ToyEpisodes(episodes, length, size, seed, discrete, factored=factored)
    splits = split_sources(source.num_sources, seed)
    for shard in range(source.num_shards):
        shard_episodes = source.make_shard(shard)
        for episode in shard_episodes:
            episode.split = int(splits[episode.source])
        write_shard(folder / shard_name(shard), shard_episodes, source.description())
    return folder
