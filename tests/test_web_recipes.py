"""What becomes of the worlds of every recipe on an exported page: played, or refused in a line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import train_dynamics
import train_tokenizer
from data.actions import ActionSpec
from data.toy import KEYS, MOVES, POINTER
from models.registry import DataSpec, build_dynamics, build_tokenizer, dynamics_class
from models.tokenizers.tokenizer import Tokenizer
from models.world import World
from pipeline import presets
from pipeline.export import web

PAGE = "page"
WORLDS = {
    # presets before `debug`, the actions of the data -> what is said, or PAGE
    "pusht": (("pusht",), POINTER, PAGE),
    "keypoints": (("keypoints",), POINTER, PAGE),
    "autoregressive": (("pusht", "autoregressive"), POINTER, "predicts its codes one by one"),
    "minecraft": (("minecraft",), KEYS, "and the page has 9 buttons"),
    "lewm": (("lewm",), POINTER, PAGE),
    "dreamer": (("dreamer",), MOVES, "has states that no single frame gives"),
    "rssm": (("pusht", "rssm"), POINTER, "has states that no single frame gives"),
    "genie": (("genie",), POINTER, "has latent actions"),
    "maskgit": (("genie", "maskgit"), POINTER, "encodes frames with their past"),
    "iwm": (("iwm",), POINTER, "has the dynamics IwmDynamics, whose steps"),
    "flexible": (("flexible",), POINTER, "has the dynamics LanguageModelDynamics, whose steps"),
}
NO_WORLD_OF_THEIR_OWN = {
    "atari": "data for another recipe",
    "loop": "rounds of another recipe",
    "value_gradients": "a controller behind keypoints",
    "dinov2": "its encoder is downloaded",
}


def untrained(names: tuple[str, ...], actions: ActionSpec) -> World:
    data = DataSpec((64, 64), actions)
    dynamics = presets.apply(train_dynamics.Config(), "dynamics", (*names, "debug"))
    if issubclass(dynamics_class(dynamics.model), Tokenizer):
        joint = build_dynamics(dynamics.model, data)
        assert isinstance(joint, Tokenizer)
        return World(joint, joint)
    given = presets.apply(train_tokenizer.Config(), "tokenizer", (*names, "debug"))
    tokenizer = build_tokenizer(given.model, data)
    model = build_dynamics(dynamics.model, replace(data, latents=tokenizer.latents))
    return World(tokenizer, model, data_actions=actions)


def test_every_recipe_is_listed():
    assert {*WORLDS, *NO_WORLD_OF_THEIR_OWN} == set(presets.recipe_names())


@pytest.mark.parametrize("recipe", WORLDS)
def test_a_world_of_a_recipe_is_played_or_refused_in_a_line(recipe: str):
    names, actions, said = WORLDS[recipe]
    world = untrained(names, actions)
    if said == PAGE:
        web.check_world(world, Path("runs/mine"))
        return
    with pytest.raises(ValueError, match=said) as refused:
        web.check_world(world, Path("runs/mine"))
    line = str(refused.value)
    assert "\n" not in line and line.startswith("runs/mine ")
    assert line.endswith("play.py --browser plays it from a server")
