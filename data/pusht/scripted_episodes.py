"""Episodes of the scripted pusher: a source of Push-T recordings that needs no download."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from data.episodes import Episode
from data.pusht.scripted_policy import ScriptedPolicy
from data.pusht.simulator import ACTIONS, GOAL, STATE_NAMES, SUCCESS, PushT, random_start, reward

HOME, ELSEWHERE = 0.7, 0.2  # shares of episodes that push to the goal, and to another pose
EPISODES_PER_SHARD = 10


class Recorder:
    """Collects what happens in a simulator, step by step, as an Episode."""

    def __init__(self, world: PushT) -> None:
        self.world = world
        self.frames: list[np.ndarray] = []
        self.actions: list[np.ndarray] = []
        self.rewards: list[float] = []
        self.states: list[np.ndarray] = []
        self.contacts: list[float] = []
        self.look()

    def look(self) -> None:
        """Record where the simulator stands."""
        self.frames.append(self.world.render())
        self.rewards.append(float(reward(self.world.coverage())))
        self.states.append(self.world.state)
        self.contacts.append(float(self.world.contacts))

    def step(self, action: np.ndarray) -> None:
        self.actions.append(np.asarray(action, np.float32))
        self.world.step(self.actions[-1])
        self.look()

    @property
    def solved(self) -> bool:
        return self.rewards[-1] >= 1.0

    def episode(self, source: int) -> Episode:
        """Give all frames; the last action leads nowhere and repeats the one before it."""
        last = self.actions[-1] if self.actions else self.states[-1][:2].astype(np.float32)
        terminals = np.zeros(len(self.frames), bool)
        terminals[-1] = self.solved
        return Episode(
            frames=np.stack(self.frames),
            actions=np.stack([*self.actions, last]),
            source=source,
            rewards=np.array(self.rewards, np.float32),
            terminals=terminals,
            states=np.stack(self.states).astype(np.float32),
            contacts=np.array(self.contacts, np.float32),
        )


def smooth_noise(random: np.random.Generator, steps: int, spread: float) -> np.ndarray:
    """Draw (steps, 2) noise of standard deviation `spread` that lasts for about five steps."""
    white = random.standard_normal((steps + 20, 2))
    kernel = np.exp(-np.arange(20) / 5.0)
    kernel /= np.sqrt((kernel**2).sum())
    mixed = np.stack([np.convolve(white[:, i], kernel, "valid") for i in range(2)], 1)
    return mixed[:steps] * spread


@dataclass(frozen=True)
class ScriptedPushes:
    """Three kinds of episode: the block is pushed to the task's goal, or to another pose, or the
    agent moves about as a player's mouse might. Targets are disturbed, each episode as much as
    chance will have it, and what was carried out is what is recorded."""

    episodes: int = 300
    image_size: int = 64
    seed: int = 0
    steps: int = 150
    """Steps of an episode, at most."""

    @property
    def shards(self) -> int:
        return -(-self.episodes // EPISODES_PER_SHARD)

    @property
    def sources(self) -> int:
        return self.episodes

    def description(self) -> dict[str, Any]:
        return {
            "source": "scripted pushes",
            "image_size": [self.image_size, self.image_size],
            "actions": ACTIONS.as_dict(),
            "state_names": list(STATE_NAMES),
            "success": SUCCESS,
            "settings": asdict(self),
        }

    def make(self, index: int) -> list[Episode]:
        first = index * EPISODES_PER_SHARD
        world = PushT(self.image_size)
        numbers = range(first, min(first + EPISODES_PER_SHARD, self.episodes))
        return [self.episode(world, number) for number in numbers]

    def episode(self, world: PushT, number: int) -> Episode:
        random = np.random.default_rng((self.seed, number))
        world.reset(random_start(int(random.integers(2**31))))
        record = Recorder(world)
        kind = random.uniform()
        loudest = 12 if kind < HOME else 30  # what is shown of the task should be clear
        spread = 0.0 if random.uniform() < 0.3 else random.uniform(3, loudest)
        noise = smooth_noise(random, self.steps, spread)
        if kind < HOME + ELSEWHERE:
            self._push(record, random, noise, GOAL if kind < HOME else _other_pose(random))
        else:
            self._move_about(record, random, noise)
        return record.episode(number)

    def _push(
        self, record: Recorder, random: np.random.Generator, noise: np.ndarray, pose: np.ndarray
    ) -> None:
        """Push to `pose`, now and then pulled off the way for a moment."""
        policy, strayed, astray = ScriptedPolicy(pose), 0, np.zeros(2)
        rested = 0
        for step in range(self.steps):
            agent = record.states[-1][:2]
            target = policy.act(record.states[-1])
            rested = rested + 1 if np.hypot(*(target - agent)) < 2 else 0
            if strayed == 0 and random.uniform() < 0.02:
                strayed = int(random.integers(2, 9))
                astray = random.uniform(-150, 150, 2)
            if strayed:
                strayed -= 1
                target = agent + astray
            record.step(np.clip(target + noise[step], 0, 512))
            if rested > 5 or (pose is GOAL and record.solved):
                break

    def _move_about(self, record: Recorder, random: np.random.Generator, noise: np.ndarray) -> None:
        """Go to places, fast or slowly, some of them beyond the block."""
        target = record.states[-1][:2]
        aim, speed = target, 20.0
        for step in range(self.steps * 2 // 3):
            if step == 0 or np.hypot(*(aim - target)) < 5 or random.uniform() < 0.05:
                agent, block = record.states[-1][:2], record.states[-1][2:4]
                beyond = block + (block - agent) * random.uniform(0, 1) + random.normal(0, 30, 2)
                aim = beyond if random.uniform() < 0.5 else random.uniform(20, 492, 2)
                speed = float(random.choice([5.0, 15.0, 30.0, 80.0, 500.0]))
            way = np.clip(aim, 0, 512) - target
            target = target + way * min(1.0, speed / max(float(np.hypot(*way)), 1e-6))
            record.step(np.clip(target + 0.3 * noise[step], 0, 512))


def _other_pose(random: np.random.Generator) -> np.ndarray:
    return np.array([*random.uniform(130, 382, 2), random.uniform(0, 2 * np.pi)])
