"""Perturbed replays of the demonstrations, the recipe behind the field's 18,685-episode set."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.episodes import Episode
from data.pusht.demos import read_demonstrations
from data.pusht.scripted_episodes import Recorder, smooth_noise
from data.pusht.simulator import ACTIONS, STATE_NAMES, SUCCESS, PushT, mirrored

EPISODES_PER_SHARD = 30


@dataclass(frozen=True)
class Replays:
    """Each demonstration carried out `replays` times in the simulator, every second time mirrored.

    The first is exact; in the others the targets have smooth noise, of 5 to 30 pixels (the rule
    of the public set was never published). Siblings share their demonstration as source.
    """

    path: str
    replays: int = 1
    image_size: int = 64
    seed: int = 0

    @property
    def sources(self) -> int:
        return len(read_demonstrations(Path(self.path)).ends)

    @property
    def shards(self) -> int:
        return -(-self.sources * self.replays // EPISODES_PER_SHARD)

    def description(self) -> dict[str, Any]:
        return {
            "source": "replays of human demonstrations, every second one mirrored",
            "image_size": [self.image_size, self.image_size],
            "actions": ACTIONS.as_dict(),
            "state_names": list(STATE_NAMES),
            "success": SUCCESS,
            "pictures": "drawn anew from the states",
            "settings": asdict(self) | {"path": Path(self.path).name},
        }

    def make(self, index: int) -> list[Episode]:
        first = index * EPISODES_PER_SHARD
        last = min(first + EPISODES_PER_SHARD, self.sources * self.replays)
        world = PushT(self.image_size)
        return [self.episode(world, *divmod(number, self.replays)) for number in range(first, last)]

    def episode(self, world: PushT, demonstration: int, replay: int) -> Episode:
        recorded = read_demonstrations(Path(self.path))
        rows = recorded.rows(demonstration)
        start, targets = recorded.states[rows][0], recorded.actions[rows]
        if replay:
            random = np.random.default_rng((self.seed, demonstration, replay))
            spread = random.uniform(5, 30)
            targets = np.clip(targets + smooth_noise(random, len(targets), spread), 0, 512)
        if replay % 2:
            start, targets = mirrored(start), mirrored(targets)
        world.reset(start)
        record = Recorder(world)
        for target in targets:  # the last too: some demonstrations succeed with it
            record.step(target)
        return record.episode(demonstration)
