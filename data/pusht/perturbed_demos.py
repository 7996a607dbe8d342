"""Perturbed demonstrations, as in DINO-WM's Push-T dataset (arXiv:2411.04983)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.pusht.demo_data import load_demos
from data.pusht.demos import describe_demos
from data.pusht.scripted_episodes import EpisodeBuilder, smooth_noise
from data.pusht.simulator import ACTIONS, STATE_NAMES, SUCCESS_COVERAGE, WINDOW_SIZE, PushT
from data.pusht.symmetries import Motion, random_motion
from data.pusht.task_goal import Goal, as_note, as_pose
from data.shards.episodes import Episode

EPISODES_PER_SHARD = 30


@dataclass(frozen=True)
class PerturbedDemos:
    """Each demonstration executed `num_copies` times in the simulator, every second copy mirrored.

    The first copy is exact, and so is the first mirrored one; the targets of the others have smooth
    noise, with a std of 5 to 30 pixels (the rule of the public dataset is not published). Copies of
    one demonstration share their source.

    With `random_goal` each copy is mirrored or not, turned and shifted as a whole, its goal with
    it, as far as it stays within the walls: so goals differ, and demonstrations still reach them.
    The first two are exact.
    """

    path: str
    num_copies: int = 1
    image_size: int = 64
    seed: int = 0
    goal: Goal | None = None
    """Where the block belongs, if that is not the task's own goal: then no copy is mirrored, unless
    its goal is."""
    random_goal: bool = False

    @property
    def num_sources(self) -> int:
        return len(load_demos(Path(self.path)).episode_ends)

    @property
    def num_shards(self) -> int:
        return -(-self.num_sources * self.num_copies // EPISODES_PER_SHARD)

    def description(self) -> dict[str, Any]:
        return {
            "source": "perturbed human demonstrations"
            + self._mirrored * ", every second one mirrored"
            + self.random_goal * ", moved with their goals",
            "image_size": [self.image_size, self.image_size],
            "actions": ACTIONS.as_dict(),
            "state_names": list(STATE_NAMES),
            "success": SUCCESS_COVERAGE,
            "images": "rendered from the states",
        } | describe_demos(self)

    @property
    def _mirrored(self) -> bool:
        return self.goal is None and not self.random_goal

    def make_shard(self, index: int) -> list[Episode]:
        first = index * EPISODES_PER_SHARD
        last = min(first + EPISODES_PER_SHARD, self.num_sources * self.num_copies)
        simulator = PushT(self.image_size, as_pose(self.goal))
        return [
            self.episode(simulator, *divmod(number, self.num_copies))
            for number in range(first, last)
        ]

    def episode(self, simulator: PushT, demo: int, copy: int) -> Episode:
        demos = load_demos(Path(self.path))
        rows = demos.rows(demo)
        start, targets = demos.states[rows][0], demos.actions[rows]
        motion, goal = self._motion(demo, copy), as_pose(self.goal)
        if copy >= (2 if self.random_goal else 1 + self._mirrored):
            rng = np.random.default_rng((self.seed, demo, copy))
            std = rng.uniform(5, 30)
            targets = np.clip(targets + smooth_noise(rng, len(targets), std), 0, WINDOW_SIZE)
        start, targets = motion(start), motion(targets)
        if self.random_goal:
            goal, targets = motion(goal), np.clip(targets, 0, WINDOW_SIZE)
        simulator.reset(start, goal=goal)
        builder = EpisodeBuilder(simulator)
        for target in targets:  # the last one too: some demonstrations succeed with it
            builder.step(target)
        return builder.to_episode(demo, as_note(goal) if self.random_goal else None)

    def _motion(self, demo: int, copy: int) -> Motion:
        """How a copy is moved as a whole."""
        if not self.random_goal:
            return Motion(mirrored=self._mirrored and copy % 2 == 1)
        demos = load_demos(Path(self.path))
        rows = demos.rows(demo)
        rng = np.random.default_rng((self.seed, demo, copy, 1))
        return random_motion(rng, demos.states[rows], demos.actions[rows])
