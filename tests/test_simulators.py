from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from pointer_world import PointerWorld

from data.pusht.simulator import ACTIONS, STATE_NAMES, PushT, random_start
from data.shards.build_info import shard_name
from data.shards.episode_dataset import EpisodeDataset
from data.shards.episodes import Episode
from data.shards.write_shard import write_shard
from data.toy import write_toy_shards
from pipeline.play.player import Player, StartSampler
from pipeline.play.simulators import open_simulator


def record_pusht(folder: Path, sources: int = 3, length: int = 40) -> EpisodeDataset:
    """Write episodes in which the agent moves straight into the block, and past it."""
    folder.mkdir()
    episodes = []
    for number in range(sources):
        world = PushT(32)
        world.reset(random_start(number))
        random = np.random.default_rng(number)
        frames, states, actions = [], [], []
        for step in range(length):
            frames.append(world.render(32))
            states.append(world.state.copy())
            if step % 5 == 0:
                target = world.state[2:4] + random.normal(0, 40, 2)
            actions.append(np.clip(target, 0, 512))
            world.step(actions[-1])
        rest = np.array(actions, np.float32), number, number  # one source for each split
        episodes.append(Episode(np.stack(frames), *rest, states=np.array(states, np.float32)))
    description = {
        "image_size": [32, 32],
        "actions": ACTIONS.as_dict(),
        "state_names": list(STATE_NAMES),
        "source": "test",
    }
    write_shard(folder / shard_name(0), episodes, description)
    return EpisodeDataset(folder)


def test_the_simulator_reproduces_an_episode(tmp_path: Path):
    dataset = record_pusht(tmp_path / "shards")
    starts = StartSampler(dataset, "test", context=3, seed=0)
    player = Player(cast(Any, PointerWorld(ACTIONS)), simulator=open_simulator(dataset))
    for first in (2, 17):
        start = starts.at(0, first)
        player.reset(start)
        states = dataset.read(start.episode, "states")[first:]
        moved = np.abs(states[-1, 2:4] - states[0, 2:4]).max()
        assert moved > 10, "the block is not pushed, so nothing is tested"
        for step in range(len(start.next_frames)):
            player.step(start.next_actions[step])
            frame, truth = player.simulator_frame().astype(int), player.dataset_frame()
            assert np.abs(frame - truth).mean() < 1.0, f"step {step} from frame {first}"
        assert np.abs(player.simulator.world.state[:4] - states[-1, :4]).max() < 2  # type: ignore


def test_recordings_with_the_names_of_push_t_but_other_actions_have_no_simulator(tmp_path: Path):
    dataset = record_pusht(tmp_path / "shards")
    dataset.actions = replace(ACTIONS, low=(-1.0, -1.0), high=(1.0, 1.0))
    with pytest.raises(ValueError, match="no simulator is known .* remove --observe-simulator"):
        open_simulator(dataset, "--observe-simulator")


def test_a_dataset_without_a_simulator_is_an_error(tmp_path: Path):
    folder = write_toy_shards(tmp_path / "toy", episodes=3)
    dataset = EpisodeDataset(folder)
    dataset.description["source"] = "elsewhere"
    dataset.state_names = ("height",)
    with pytest.raises(ValueError, match="no simulator is known"):
        open_simulator(dataset)
    for header in dataset.headers:
        header.fields = header.fields - {"states"}
    with pytest.raises(ValueError, match="no simulator states"):
        open_simulator(dataset)
