"""Atari games, where ale-py is installed; what is said where it is not."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import preprocess
from data.gym.env_spec import EnvSpec
from data.gym.pixel_env import PixelEnv
from data.shards.episode_dataset import EpisodeDataset
from pipeline import presets
from pipeline.play.player import StartSampler
from pipeline.play.simulators import open_simulator


def record(run: Path, *preset: str, **changes: Any) -> EpisodeDataset:
    config = presets.apply(preprocess.GymConfig(), "preprocess_gym", preset)
    settings = {"env": "ALE/Breakout-v5", "steps": 60, "num_workers": 1, "num_envs": 1}
    preprocess.gym(replace(config, run=run, **(settings | changes)))
    return EpisodeDataset(run / "shards")


@pytest.mark.parametrize("env_id", ["ALE/Pong-v5", "PongNoFrameskip-v4"])
def test_a_game_without_its_package_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, env_id: str
):
    def missing(name: str) -> None:
        raise ImportError(name=name)

    monkeypatch.setattr(importlib, "import_module", missing)
    message = f"--env {env_id} needs the package ale_py, .*pip install -r requirements-atari.txt$"
    with pytest.raises(ValueError, match=message):
        PixelEnv(EnvSpec(env_id))


def test_only_a_game_imports_the_package():
    """GPL-2.0: the core must not need it."""
    for path in Path(__file__).parents[1].rglob("*.py"):
        if ".venv" not in path.parts and path != Path(__file__):
            assert "import ale_py" not in path.read_text(), path


@pytest.mark.parametrize(
    ("preset", "side", "actions", "gray"),
    [
        (("atari",), 64, ("NOOP", "FIRE", "RIGHT", "LEFT"), False),
        (("atari", "high_res"), 128, ("NOOP", "FIRE", "RIGHT", "LEFT"), False),
        (("atari", "gray84"), 84, ("NOOP", "FIRE", "UP", "RIGHT"), True),
    ],
)
def test_the_views_of_a_game(
    tmp_path: Path, preset: tuple[str, ...], side: int, actions: tuple[str, ...], gray: bool
):
    pytest.importorskip("ale_py")
    dataset = record(tmp_path, *preset)
    assert dataset.image_size == (side, side)
    assert dataset.actions.names[:4] == actions
    assert dataset.actions.size == (18 if gray else 4)
    frames = dataset.read_rows("frames", 0, dataset.num_frames)
    assert (frames == frames[..., :1]).all() == gray
    assert dataset.read_rows("lives", 0, 1).tolist() == [5]


def test_a_game_is_repeated_from_its_seed(tmp_path: Path):
    pytest.importorskip("ale_py")
    dataset = record(tmp_path, "atari", episodes=3, steps=0, max_episode_steps=40)
    start = StartSampler(dataset, "test", context=2, seed=0).at(0, 20)
    simulator = open_simulator(dataset)
    simulator.reset(start)
    for action, frame in zip(start.next_actions[:-1], start.next_frames, strict=True):
        simulator.step(action)
        assert np.array_equal(simulator.render(64), frame)


def test_a_run_of_games_without_shards_says_how_to_record_them(tmp_path: Path):
    said = presets.first_command(tmp_path / "run", ["pusht", "cpu", "atari"])
    assert said.startswith("python preprocess.py gym --env ID --run ")
    assert said.endswith("--preset pusht cpu atari")
