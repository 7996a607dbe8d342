"""Episodes of the scripted policy: a source of Push-T episodes that needs no download."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from data.pusht.scripted_policy import ScriptedPolicy
from data.pusht.simulator import (
    ACTIONS,
    GOAL,
    STATE_NAMES,
    SUCCESS_COVERAGE,
    PushT,
    random_start,
    reward,
)
from data.pusht.task_goal import as_note, random_pose
from data.shards.episodes import Episode

# fractions of the episodes that push to the goal, and to another pose
GOAL_SHARE, OTHER_POSE_SHARE = 0.7, 0.2
EPISODES_PER_SHARD = 10


class EpisodeBuilder:
    """Collects the steps of a simulator as an Episode."""

    def __init__(self, simulator: PushT) -> None:
        self.simulator = simulator
        self.frames: list[np.ndarray] = []
        self.actions: list[np.ndarray] = []
        self.rewards: list[float] = []
        self.states: list[np.ndarray] = []
        self.contacts: list[float] = []
        self.observe()

    def observe(self) -> None:
        """Append the simulator's current state and its frame."""
        self.frames.append(self.simulator.render())
        self.rewards.append(float(reward(self.simulator.coverage())))
        self.states.append(self.simulator.state)
        self.contacts.append(float(self.simulator.contacts))

    def step(self, action: np.ndarray) -> None:
        self.actions.append(np.asarray(action, np.float32))
        self.simulator.step(self.actions[-1])
        self.observe()

    @property
    def success(self) -> bool:
        return self.rewards[-1] >= 1.0

    def to_episode(self, source: int, notes: dict[str, Any] | None = None) -> Episode:
        """Return the episode; its last action leads nowhere and repeats the one before it."""
        last = self.actions[-1] if self.actions else self.states[-1][:2].astype(np.float32)
        terminals = np.zeros(len(self.frames), bool)
        terminals[-1] = self.success
        return Episode(
            frames=np.stack(self.frames),
            actions=np.stack([*self.actions, last]),
            source=source,
            rewards=np.array(self.rewards, np.float32),
            terminals=terminals,
            states=np.stack(self.states).astype(np.float32),
            contacts=np.array(self.contacts, np.float32),
            notes=notes or {},
        )


def smooth_noise(rng: np.random.Generator, steps: int, std: float) -> np.ndarray:
    """Draw (steps, 2) noise of standard deviation `std`, correlated over about five steps."""
    white = rng.standard_normal((steps + 20, 2))
    kernel = np.exp(-np.arange(20) / 5.0)
    kernel /= np.sqrt((kernel**2).sum())
    mixed = np.stack([np.convolve(white[:, i], kernel, "valid") for i in range(2)], 1)
    return mixed[:steps] * std


@dataclass(frozen=True)
class ScriptedEpisodes:
    """Three kinds of episodes: the block is pushed to the task's goal, or to another pose, or the
    agent explores as a player's mouse might. Targets are perturbed with a noise level drawn per
    episode, and the episode holds the perturbed actions."""

    episodes: int = 300
    image_size: int = 64
    seed: int = 0
    steps: int = 150
    """Maximum steps of an episode."""
    random_goal: bool = False
    """Each episode draws a goal of its own, anywhere, in the place of the task's."""

    @property
    def num_shards(self) -> int:
        return -(-self.episodes // EPISODES_PER_SHARD)

    @property
    def num_sources(self) -> int:
        return self.episodes

    def description(self) -> dict[str, Any]:
        settings = asdict(self)
        if not self.random_goal:  # older shards do not know it
            del settings["random_goal"]
        return {
            "source": "scripted pushes",
            "image_size": [self.image_size, self.image_size],
            "actions": ACTIONS.as_dict(),
            "state_names": list(STATE_NAMES),
            "success": SUCCESS_COVERAGE,
            "settings": settings,
        }

    def make_shard(self, index: int) -> list[Episode]:
        first = index * EPISODES_PER_SHARD
        simulator = PushT(self.image_size)
        numbers = range(first, min(first + EPISODES_PER_SHARD, self.episodes))
        return [self.episode(simulator, number) for number in numbers]

    def episode(self, simulator: PushT, number: int) -> Episode:
        rng = np.random.default_rng((self.seed, number))
        # of its own random numbers, so that all else is as with the task's goal
        goal = random_pose(np.random.default_rng((self.seed, number, 1)))
        goal = goal if self.random_goal else GOAL
        simulator.reset(random_start(int(rng.integers(2**31))), goal=goal)
        builder = EpisodeBuilder(simulator)
        draw = rng.uniform()
        max_std = 12 if draw < GOAL_SHARE else 30  # demonstrations of the task should be clear
        std = 0.0 if rng.uniform() < 0.3 else rng.uniform(3, max_std)
        noise = smooth_noise(rng, self.steps, std)
        if draw < GOAL_SHARE + OTHER_POSE_SHARE:
            is_task = draw < GOAL_SHARE
            self._push(builder, rng, noise, goal if is_task else random_pose(rng), is_task)
        else:
            self._explore(builder, rng, noise)
        return builder.to_episode(number, as_note(goal) if self.random_goal else None)

    def _push(
        self,
        builder: EpisodeBuilder,
        rng: np.random.Generator,
        noise: np.ndarray,
        pose: np.ndarray,
        is_task: bool,
    ) -> None:
        """Push to `pose`, with occasional perturbations of a few steps."""
        policy, perturbed_steps, perturbation = ScriptedPolicy(pose), 0, np.zeros(2)
        idle_steps = 0
        for step in range(self.steps):
            agent = builder.states[-1][:2]
            target = policy.act(builder.states[-1])
            idle_steps = idle_steps + 1 if np.hypot(*(target - agent)) < 2 else 0
            if perturbed_steps == 0 and rng.uniform() < 0.02:
                perturbed_steps = int(rng.integers(2, 9))
                perturbation = rng.uniform(-150, 150, 2)
            if perturbed_steps:
                perturbed_steps -= 1
                target = agent + perturbation
            builder.step(np.clip(target + noise[step], 0, 512))
            if idle_steps > 5 or (is_task and builder.success):
                break

    def _explore(
        self, builder: EpisodeBuilder, rng: np.random.Generator, noise: np.ndarray
    ) -> None:
        """Move to random places, fast or slowly, some of them beyond the block."""
        target = builder.states[-1][:2]
        destination, speed = target, 20.0
        for step in range(self.steps * 2 // 3):
            if step == 0 or np.hypot(*(destination - target)) < 5 or rng.uniform() < 0.05:
                agent, block = builder.states[-1][:2], builder.states[-1][2:4]
                beyond = block + (block - agent) * rng.uniform(0, 1) + rng.normal(0, 30, 2)
                destination = beyond if rng.uniform() < 0.5 else rng.uniform(20, 492, 2)
                speed = float(rng.choice([5.0, 15.0, 30.0, 80.0, 500.0]))
            offset = np.clip(destination, 0, 512) - target
            target = target + offset * min(1.0, speed / max(float(np.hypot(*offset)), 1e-6))
            builder.step(np.clip(target + 0.3 * noise[step], 0, 512))
