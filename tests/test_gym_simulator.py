"""Play next to the gymnasium environment of a dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from pointer_world import PointerWorld

import preprocess
from data.actions import ActionSpec, as_tensor
from data.gym.pixel_env import PixelEnv
from data.shards.episode_dataset import EpisodeDataset
from models.dynamics.dynamics import State
from pipeline.play.gym_simulator import GymSimulator
from pipeline.play.player import Player, StartSampler
from pipeline.play.simulators import open_simulator
from pipeline.recording.gym_config import GymConfig


def record(folder: Path, env: str = "Pendulum-v1", **changes: Any) -> EpisodeDataset:
    settings: dict[str, Any] = {"episodes": 3, "max_episode_steps": 12, "resolution": 32}
    preprocess.gym(GymConfig(folder, env=env, num_workers=1, **(settings | changes)))
    return EpisodeDataset(folder / "shards")


def starts(dataset: EpisodeDataset) -> StartSampler:
    return StartSampler(dataset, "test", context=2, seed=0)


@pytest.mark.parametrize("changes", [{}, {"frame_skip": 3, "grayscale": True}])
def test_the_environment_repeats_an_episode_from_any_step(
    tmp_path: Path, changes: dict[str, Any], capsys: pytest.CaptureFixture[str]
):
    dataset = record(tmp_path, **changes)
    world = cast(Any, PointerWorld(dataset.actions))
    player = Player(world, simulator=open_simulator(dataset))
    for first in (1, 7):
        start = starts(dataset).at(0, first)
        player.reset(start)
        for step in range(len(start.next_frames)):
            player.step(start.next_actions[step])
            assert np.array_equal(player.simulator_frame(), player.dataset_frame())
    assert isinstance(player.simulator, GymSimulator)
    total = dataset.read(starts(dataset).episodes[0], "rewards").sum()
    assert player.simulator.status() == f"return {total:g}" or abs(
        float(player.simulator.status().split()[1]) - total
    ) < 1e-3 * abs(total)
    assert player.simulator.coverage() is None
    assert "warning: Pendulum" not in capsys.readouterr().out


def test_it_goes_on_where_the_recording_was_cut_and_stops_at_a_true_end(tmp_path: Path):
    dataset = record(tmp_path, "CartPole-v1", max_episode_steps=4)
    simulator = open_simulator(dataset)
    simulator.reset(starts(dataset).at(0, 2))
    for _ in range(40):  # to one side, until the pole falls
        simulator.step(np.array(1))
    assert simulator.status().endswith("(ended)")
    frame, status = simulator.render(32), simulator.status()
    simulator.step(np.array(0))
    assert np.array_equal(simulator.render(32), frame) and simulator.status() == status
    assert simulator.render(16).shape == (16, 16, 3)


def test_another_course_of_events_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    dataset = record(tmp_path)
    reset = PixelEnv.reset
    monkeypatch.setattr(PixelEnv, "reset", lambda self, seed: reset(self, seed + 1))
    simulator = open_simulator(dataset)
    for frame in (3, 4):
        simulator.reset(starts(dataset).at(0, frame))
    said = capsys.readouterr().out
    assert said.count("does not repeat its episode") == 1 and "% of the pixels differ at f" in said


def test_episodes_without_seeds_of_their_own_are_refused(tmp_path: Path):
    dataset = record(tmp_path, "CartPole-v1", vectorization_mode="vector_entry_point")
    with pytest.raises(ValueError, match="have no seeds of their own.*remove --compare-simulator"):
        open_simulator(dataset)


def test_a_world_that_observes_each_step_stands_at_the_real_frames(tmp_path: Path):
    dataset = record(tmp_path)
    world = cast(Any, Remembers(dataset.actions))
    player = Player(world, simulator=open_simulator(dataset), observes_each_step=True)
    start = starts(dataset).at(0, 1)
    player.reset(start)
    for step in range(5):
        predicted = world.decode(
            world.step(player.state, as_tensor(start.next_actions[step][None]))
        )
        player.step(start.next_actions[step])
        real = torch.from_numpy(start.next_frames[step].copy()).permute(2, 0, 1)
        assert torch.equal(world.seen[-1], real[None])
        # what is shown is what was predicted of it
        assert np.array_equal(player.model_frame, predicted[0].permute(1, 2, 0).numpy())


class Remembers(PointerWorld):
    """Keeps the frames that it observes."""

    def __init__(self, actions: ActionSpec) -> None:
        super().__init__(actions)
        self.seen: list[torch.Tensor] = []

    def observe(self, state: State, action: torch.Tensor, frames: torch.Tensor) -> State:
        self.seen.append(frames)
        return super().observe(state, action, frames)
