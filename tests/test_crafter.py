"""Crafter as a gymnasium environment, where it is installed; what is said where it is not."""

from __future__ import annotations

import importlib

import numpy as np
import pytest

from data.gym.env_spec import EnvSpec
from data.gym.pixel_env import PixelEnv

SPEC = EnvSpec("CrafterReward-v1", {"length": 5})


def test_without_its_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    def missing(name: str) -> None:
        raise ImportError(name="crafter")

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ValueError, match="needs the package crafter, .*: pip install crafter$"):
        PixelEnv(SPEC)


def test_a_world_follows_from_its_seed_and_a_time_limit_is_no_death():
    pytest.importorskip("crafter")
    one, other = PixelEnv(SPEC), PixelEnv(SPEC)
    assert one.actions.names[:3] == ("noop", "move_left", "move_right") and one.actions.size == 17
    other.reset(3)  # an episode before changes nothing
    firsts = [env.reset(7).frame for env in (one, other)]
    assert np.array_equal(firsts[0], firsts[1]) and not np.array_equal(
        firsts[0], one.reset(8).frame
    )
    one.reset(7)
    for step in range(5):
        results = [env.step(np.array(step)) for env in (one, other)]
        assert np.array_equal(results[0].frame, results[1].frame)
    assert results[0].truncated and not results[0].terminated


def test_a_death_is_a_true_end(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("crafter")
    env = PixelEnv(SPEC)
    env.reset(0)
    env.env.unwrapped._env._player.health = 0  # type: ignore[attr-defined]
    result = env.step(np.array(0))
    assert result.terminated and not result.truncated and result.reward < 0
