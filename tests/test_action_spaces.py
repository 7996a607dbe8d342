"""Action spaces of gymnasium as ours, there and back."""

from __future__ import annotations

from enum import IntEnum
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from data.actions import ActionSpec
from data.gym.action_spaces import action_names, action_spec, env_action, stored_action

SPACES: dict[str, spaces.Space] = {
    "discrete": spaces.Discrete(4),
    "from -1": spaces.Discrete(3, start=-1),
    "multi": spaces.MultiDiscrete([3, 2, 4]),
    "multi from": spaces.MultiDiscrete([3, 2], start=[1, -1]),
    "grid": spaces.MultiDiscrete(np.array([[3, 2], [2, 5]])),
    "binary": spaces.MultiBinary(5),
    "binary grid": spaces.MultiBinary((2, 2)),
    "box": spaces.Box(-2.0, 3.0, (3,), np.float32),
    "box grid": spaces.Box(np.array([[0.0, -1.0]]), np.array([[1.0, 5.0]]), dtype=np.float64),
}


@pytest.mark.parametrize("name", SPACES)
def test_actions_come_back_as_they_were(name: str):
    space = SPACES[name]
    spec = action_spec(space)
    space.seed(0)
    for _ in range(50):
        own = space.sample()
        stored = stored_action(space, spec, own)
        assert stored.shape == spec.shape
        back = env_action(space, spec, stored)
        assert space.contains(back) and np.allclose(back, own)


@pytest.mark.parametrize("name", SPACES)
def test_every_code_is_an_action_of_its_own(name: str):
    space = SPACES[name]
    spec = action_spec(space)
    assert ActionSpec.from_dict(spec.as_dict()) == spec
    rng = np.random.default_rng(0)
    codes = range(spec.size) if spec.kind == "discrete" else spec.sample(20, rng)
    own = [env_action(space, spec, np.asarray(code)) for code in codes]
    assert all(space.contains(action) for action in own)
    assert len({np.asarray(action).tobytes() for action in own}) == len(own)


def test_labels_name_the_choices():
    assert action_spec(SPACES["from -1"]).names == ("-1", "0", "1")
    assert action_spec(spaces.Discrete(2), ("NOOP", "FIRE")).names == ("NOOP", "FIRE")
    assert action_spec(spaces.Discrete(2), ("NOOP",)).names == ("0", "1")
    assert action_spec(SPACES["binary"]).describe(0b00101) == "button_0  button_2"
    assert action_spec(SPACES["multi from"]).factors[0].labels[2] == "choice_0=3"


def test_limits_are_those_of_the_box():
    spec = action_spec(SPACES["box grid"])
    assert (spec.low, spec.high) == ((0.0, -1.0), (1.0, 5.0))
    beyond = env_action(SPACES["box"], action_spec(SPACES["box"]), np.array([9.0, -9.0, 0.0]))
    assert beyond.tolist() == [3.0, -2.0, 0.0]


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (spaces.Tuple([spaces.Discrete(2)]), "Discrete, MultiDiscrete, MultiBinary and Box can be"),
        (spaces.Dict({"a": spaces.Discrete(2)}), "Discrete, MultiDiscrete, MultiBinary and Box"),
        (spaces.Box(-np.inf, np.inf, (2,)), "without finite limits"),
        (spaces.Box(0, 5, (2,), np.int64), "whole numbers in a Box; use MultiDiscrete"),
        (spaces.MultiBinary(17), "131,072 together, and at most 65,536"),
        (spaces.Discrete(2**17), "131,072 together, and at most 65,536"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_other_spaces_are_refused_in_one_line(space: spaces.Space, message: str):
    with pytest.raises(ValueError, match=f"^Some-v0 has actions of .*{message}") as refused:
        action_spec(space, where="Some-v0")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("action", [4, -1, 0.5, "left", None, np.array([0, 1])])
def test_what_is_no_action_is_refused(action: Any):
    with pytest.raises(ValueError, match="is no action of Discrete"):
        stored_action(spaces.Discrete(4), action_spec(spaces.Discrete(4)), action)


def test_names_are_found_where_environments_have_them():
    class Moves(IntEnum):
        left = 0
        right = 1

    def env(**attributes: Any) -> Any:
        return SimpleNamespace(unwrapped=SimpleNamespace(**attributes))

    assert action_names(env(get_action_meanings=lambda: ["NOOP", "UP"])) == ("NOOP", "UP")
    assert action_names(env(actions=Moves)) == ("left", "right")
    assert action_names(env(action_names=["a", "b"])) == ("a", "b")
    assert action_names(env()) == ()
