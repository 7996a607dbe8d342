"""A run folder of the square world, as the stages leave it."""

from __future__ import annotations

from pathlib import Path

import pytest
from square_world import STICK, SquareConfig, SquareWorld, write_squares

import train_dynamics
from data.actions import ActionSpec
from models import registry
from pipeline.training.train_config import TrainConfig


def square_run(
    monkeypatch: pytest.MonkeyPatch, folder: Path, actions: ActionSpec | None = STICK
) -> Path:
    """Let the registry know the method, and train it, which changes nothing."""
    monkeypatch.setitem(registry.DYNAMICS, "square", lambda: (SquareConfig, SquareWorld))
    write_squares(folder / "shards", actions)
    train = TrainConfig(
        steps=1, batch_size=2, warmup_steps=1, eval_every=1, save_every=1, log_every=1,
        precision="fp32",
    )  # fmt: skip
    train_dynamics.main(train_dynamics.Config(folder, SquareConfig(), train=train))
    return folder
