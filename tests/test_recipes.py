"""Recipes: every preset applies to every stage, and changes no more than it says.

What each one sets is in tests/test_recipe_settings.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import evaluate
import play
import preprocess
import train_controller
import train_dynamics
import train_tokenizer
from models import registry
from pipeline import presets

CONFIGS: dict[str, Callable[[], Any]] = {
    "preprocess_pusht": preprocess.PushTConfig,
    "preprocess_vpt": preprocess.VptConfig,
    "preprocess_gym": preprocess.GymConfig,
    "preprocess_images": partial(preprocess.ImagesConfig, (Path("photos"),)),
    "tokenizer": train_tokenizer.Config,
    "dynamics": train_dynamics.Config,
    "controller": train_controller.Config,
    "play": play.Config,
    "evaluate": evaluate.Config,
}
RECIPES = (
    "pusht", "keypoints", "lewm", "dinov2", "dreamer", "iwm", "iwm_actions", "minecraft",
    "genie", "flexible",
)  # fmt: skip
# recipes that change another one
BEHIND = ("autoregressive", "maskgit", "rssm", "atari", "loop", "value_gradients", "vae")
ON_CODES = ("pusht", "minecraft")
PUSHT_SIZES = ("cpu", "cpu30", "debug", "high_res")
SIZES = {
    **dict.fromkeys(("pusht", "keypoints", "lewm", "dinov2"), PUSHT_SIZES),
    "minecraft": ("150m", "high_res", "debug"),
    "dreamer": (*PUSHT_SIZES, "sharp", "absolute", "1m", "4m", "12m", "25m", "32x32"),
    "genie": ("cpu", "debug", "coinrun", "high_res"),
    "flexible": ("cpu", "debug", "high_res"),
    "iwm_actions": ("cpu", "debug", "high_res"),
    "iwm": (
        "base",
        "core",
        "invariant",
        "equivariant",
        "streams",
        "cpu",
        "unmasked",
        "debug",
        "high_res",
    ),
    "autoregressive": (),
    "maskgit": ("cpu", "debug", "coinrun"),
    "rssm": ("cpu", "debug"),
    "atari": ("high_res", "gray84"),
    "loop": ("sparse",),
    "value_gradients": ("debug",),
    "vae": ("debug",),
}


def sizes(recipe: str) -> tuple[str, ...]:
    """Those of its own table, so that a new recipe is tested with the sizes it has."""
    return tuple(presets._sizes(presets._recipe(recipe)))


WHOLE = [name for name in presets.recipe_names() if hasattr(presets._recipe(name), "RUN")]
WITH_TOKENIZER = [name for name in WHOLE if not presets.lacks([name], "tokenizer")]

COMBINATIONS = [
    *([recipe] for recipe in WHOLE),
    *([recipe, size] for recipe in WHOLE for size in sizes(recipe)),
    *([recipe, "autoregressive"] for recipe in ON_CODES),
    *([recipe, "autoregressive", size] for recipe in ON_CODES for size in sizes(recipe)),
    ["keypoints", "value_gradients"],
    ["keypoints", "debug", "value_gradients", "debug"],
    ["flexible", "vae"],
    ["flexible", "debug", "vae", "debug"],
    ["genie", "maskgit"],
    *(["genie", size, "maskgit", size] for size in ("cpu", "debug", "coinrun")),
    *([recipe, "rssm"] for recipe in WITH_TOKENIZER),
    *(
        [recipe, size, "rssm", size]
        for recipe in WITH_TOKENIZER
        for size in sizes("rssm")
        if size in sizes(recipe)
    ),
    ["dreamer", "loop"],
    ["dreamer", "loop", "debug"],
    ["dreamer", "loop", "sparse"],
    *(
        [recipe, size, "high_res"]
        for recipe in WHOLE
        for size in sizes(recipe)
        if "high_res" in sizes(recipe)
    ),
]


def configured(stage: str, *names: str) -> Any:
    return presets.apply(CONFIGS[stage](), stage, names)


def leaves(config: Any, prefix: str = "") -> dict[str, Any]:
    """Every field of a config by its dotted name; a config inside it by the name of its kind."""
    found: dict[str, Any] = {}
    for field in fields(config):
        inner, key = getattr(config, field.name), prefix + field.name
        if is_dataclass(inner):
            found |= {key: type(inner).__name__} | leaves(inner, key + ".")
        else:
            found[key] = inner
    return found


def test_there_are_these_recipes_and_sizes():
    assert SIZES.keys() == {*RECIPES, *BEHIND} <= set(presets.recipe_names())
    for recipe, known in SIZES.items():
        assert set(sizes(recipe)) == set(known), recipe


@pytest.mark.parametrize("stage", CONFIGS)
@pytest.mark.parametrize("names", COMBINATIONS, ids=" ".join)
def test_every_preset_applies_to_every_stage(names: list[str], stage: str):
    """The types of values stay those of the defaults."""
    if stage == "tokenizer" and presets.lacks(names, stage):
        with pytest.raises(ValueError, match="has no tokenizer of its own"):
            configured(stage, *names)
        return
    before, after = leaves(CONFIGS[stage]()), leaves(configured(stage, *names))
    for key in before.keys() & after.keys():
        assert type(after[key]) is type(before[key]), key


METHODS = {
    "pusht": ("vqvae", "llama", "goal_policy"),
    "keypoints": ("keypoints", "predictor", "goal_policy"),
    "lewm": ("jepa", "predictor", "goal_policy"),
    "dinov2": ("frozen_encoder", "predictor", "goal_policy"),
    "iwm": ("iwm", "iwm_dynamics", "goal_policy"),
    "iwm_actions": ("iwm_actions", "iwm_dynamics", "goal_policy"),
    "dreamer": ("", "rssm", "goal_policy"),
    "minecraft": ("vqvae", "llama", "discrete_goal_policy"),
    "genie": ("st_vivit", "genie", "goal_policy"),
    "flexible": ("keypoints", "language_model", "goal_policy"),
}


def methods(*names: str) -> tuple[str, str, str]:
    """The kinds of tokenizer, dynamics and goal policy."""
    joint = presets.lacks(names, "tokenizer")
    return (
        "" if joint else registry.describe(configured("tokenizer", *names).model)["kind"],
        registry.describe(configured("dynamics", *names).model)["kind"],
        registry.describe(configured("controller", *names).goal_policy)["kind"],
    )


@pytest.mark.parametrize("recipe", WHOLE)
def test_a_size_does_not_change_the_methods(recipe: str):
    own = METHODS.get(recipe, methods(recipe))
    for size in ("", *sizes(recipe)):
        assert methods(recipe, *size.split()) == own, size


# What a recipe may hold.


def test_a_stage_that_a_recipe_does_not_name_is_left_as_it_is():
    for stage, names in {
        "tokenizer": ["pusht", "autoregressive"],
        "play": ["pusht", "autoregressive"],
        "controller": ["pusht", "high_res"],
        "dynamics": ["keypoints", "high_res"],
        "evaluate": ["minecraft", "150m"],
    }.items():
        assert configured(stage, *names) == configured(stage, names[0]), names


def test_an_unknown_key_is_an_error_that_names_it():
    for key, name in {
        "model.codebook_sise": "codebook_sise",
        "modle": "modle",
        "train.steps.much": "much",
        "run.folder": "folder",
    }.items():
        with pytest.raises(ValueError, match=rf"^--preset mine sets {name}, which \w+ does not"):
            presets.changed(train_tokenizer.Config(), {key: 1}, "--preset mine")


def test_an_unknown_method_is_an_error_that_names_it():
    with pytest.raises(ValueError, match="unknown method 'keypionts'; there are: .*keypoints"):
        presets.changed(train_tokenizer.Config(), {"model": "keypionts"}, "--preset mine")


@pytest.mark.parametrize("recipe", presets.recipe_names())
def test_every_table_belongs_to_a_stage(recipe: str):
    """A stage that is spelled wrong would change nothing, and nobody would notice."""
    module = presets._recipe(recipe)
    tables = {
        name
        for name in vars(module)
        if name.isupper() and not name.startswith(("RUN", "SOURCE", "SIZES"))
    }
    known = {stage.upper() for stage in presets.STAGES}
    assert all(any(n == k or n.startswith(f"{k}_") for k in known) or n in SHARED for n in tables)
    for size, stages in presets._sizes(module).items():
        assert stages.keys() <= set(presets.STAGES), size


SHARED = ("HIGH_RES", "PREPROCESS_CPU", "PREPROCESS_CPU30", "PREPROCESS_DEBUG")


def test_the_readme_of_recipes_names_every_table():
    readme = (Path(presets.recipes.__path__[0]) / "README.md").read_text()
    assert set(re.findall(r"`([A-Z_]{4,})`", readme)) == {
        "SOURCE",
        *(stage.upper() for stage in CONFIGS),
    }
    assert "`SIZES[name][stage]`" in readme and "`tests/test_recipes.py`" in readme


def test_the_documented_recipes_exist():
    """Every recipe explains itself in its first line."""
    for recipe in presets.recipe_names():
        assert (presets._recipe(recipe).__doc__ or "").strip(), recipe
