"""Every number of a config has a range; what is outside is refused by the name of its flag."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import pytest

import bench.__main__
import evaluate
import play
import preprocess
import train_controller
import train_dynamics
import train_tokenizer
from data.ranges import CheckedConfig, NonEmpty, Range, check_ranges, deferred_checks
from models import registry
from models.config import from_plain, to_plain
from models.registry import MethodConfig
from pipeline import presets, publish, pull
from pipeline.cli import check_config, parse
from pipeline.export import checkpoints as export

STAGES: dict[str, CheckedConfig] = {
    "preprocess_pusht": preprocess.PushTConfig(),
    "preprocess_vpt": preprocess.VptConfig(),
    "preprocess_arrays": preprocess.ArraysConfig(Path("frames.h5")),
    "preprocess_gym": preprocess.GymConfig(),
    "preprocess_images": preprocess.ImagesConfig((Path("photos"),)),
    "preprocess_video": preprocess.VideoConfig((Path("clips"),)),
    "tokenizer": train_tokenizer.Config(),
    "dynamics": train_dynamics.Config(),
    "controller": train_controller.Config(),
    "play": play.Config(),
    "evaluate": evaluate.Config(),
}
ROOTS = [
    *STAGES.values(),
    preprocess.CheckConfig(Path("shards")),
    bench.__main__.Config(areas=()),
    export.Config(),
    publish.Config(Path("run"), "user/name"),
    pull.Config("hf://user/name"),
]
METHODS = {
    "tokenizer": registry.TOKENIZERS,
    "dynamics": registry.DYNAMICS,
    "controller": registry.CONTROLLERS,
}
Place = tuple[CheckedConfig, tuple[str, ...], Any]
"""A root, the fields that lead from it to a number, and the annotation of the last."""


def variants(root: CheckedConfig) -> Iterator[CheckedConfig]:
    """A root with each method that its fields may hold."""
    yield root
    stage = next((stage for stage, config in STAGES.items() if config is root), "")
    hints = get_type_hints(type(root))
    for field in fields(root):  # type: ignore[arg-type]
        if hints[field.name] is MethodConfig:
            for name in METHODS[stage]:
                yield replace(root, **{field.name: registry.default_config(name)})  # type: ignore[type-var]


def numbers(config: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Paths to the fields of numbers in a config and those within it, and their annotations."""
    hints = get_type_hints(type(config), include_extras=True)
    for field in fields(config):
        value, hint = getattr(config, field.name), hints[field.name]
        if is_dataclass(value):
            yield from numbers(value, (*path, field.name))
        elif {int, float} & set(leaves(hint)):
            yield (*path, field.name), hint


def leaves(hint: Any) -> Iterator[Any]:
    if get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    if get_args(hint):
        for inner in get_args(hint):
            yield from leaves(inner)
    else:
        yield hint


def bounds(hint: Any) -> Range | None:
    marks = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
    return next((mark for mark in marks if isinstance(mark, Range)), None)


def changed(config: Any, path: tuple[str, ...], value: Any) -> Any:
    name, *rest = path
    now = getattr(config, name)
    if rest:
        return replace(config, **{name: changed(now, tuple(rest), value)})
    return replace(
        config, **{name: (value,) * max(1, len(now)) if isinstance(now, tuple) else value}
    )


def flag_of(path: tuple[str, ...]) -> str:
    named = [name for name in path if name != "frame_format"]
    return "--" + ".".join(named).replace("_", "-")


def outside(allowed: Range) -> list[float]:
    """What is refused: all that is not finite, and the next whole number beyond each end."""
    found = [math.nan, math.inf, -math.inf]
    if allowed.low is not None:
        found.append(allowed.low - 1 if not allowed.or_zero else -1)
    if allowed.high is not None:
        found.append(allowed.high + 1)
    return found + [edge for edge in (allowed.above, allowed.below) if edge is not None]


def places() -> list[Place]:
    """Every number once, also where a config is of several roots or variants."""
    found: dict[Any, Place] = {}
    for root in ROOTS:
        for variant in variants(root):
            for path, hint in numbers(variant):
                found.setdefault((type(root), path, hint), (variant, path, hint))
    return list(found.values())


PLACES = places()


def test_every_number_of_every_config_has_a_range():
    without = {
        f"{type(root).__module__} {flag_of(path)}"
        for root, path, hint in PLACES
        if bounds(hint) is None
    }
    assert len(PLACES) > 200 and not without


def test_a_number_outside_its_range_is_refused_by_the_name_of_its_flag():
    for root, path, hint in PLACES:
        allowed = bounds(hint)
        assert allowed is not None
        for value in outside(allowed):
            with deferred_checks():
                config = changed(root, path, value)
            wrong = "is not a number" if math.isnan(value) else "is out of range"
            with pytest.raises(ValueError) as refused:
                check_config(config)
            assert str(refused.value) == f"{flag_of(path)} {value} {wrong}; it must be {allowed}"


def test_a_range_has_two_ends_where_it_is_not_all_numbers():
    for _, path, hint in PLACES:
        allowed = bounds(hint)
        assert allowed is not None
        if allowed == Range():  # in units that only the data know
            continue
        ends = (allowed.low, allowed.above), (allowed.high, allowed.below)
        assert all(any(end is not None for end in pair) for pair in ends), path


@pytest.mark.parametrize("stage", STAGES)
def test_all_recipes_are_within_the_ranges(stage: str):
    for recipe in presets.recipe_names():
        for size in ["", *presets.size_names()]:
            try:
                names = presets.check([recipe, size] if size else [recipe])
                config = presets.apply(STAGES[stage], stage, names)
            except ValueError as problem:  # no such size, or nothing to change
                alone = hasattr(presets._recipe(recipe), "RUN")  # others change what is before
                assert "has no " in str(problem) or not alone
                continue
            check_config(config)


@dataclass(frozen=True)
class Small(CheckedConfig):
    count: Annotated[int, Range(1, 8)] = 1
    rate: Annotated[float, Range(above=0, high=10)] = 1.0
    size: Annotated[int, Range(16, 32, or_zero=True)] = 0
    limit: Annotated[int | None, Range(1, 8)] = None
    steps: Annotated[tuple[int, ...], Range(1, 8), NonEmpty()] = (1,)
    parts: Annotated[tuple[str, ...], NonEmpty()] = ("all",)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count": 0}, "--count 0 is out of range; it must be between 1 and 8"),
        ({"count": 1.5}, "--count 1.5 is not a whole number"),
        ({"count": "3"}, "--count 3 is not a number"),
        ({"count": True}, "--count True is not a number"),
        ({"rate": 0.0}, "--rate 0.0 is out of range; it must be above 0 and at most 10"),
        ({"rate": math.nan}, "--rate nan is not a number; it must be above 0 and at most 10"),
        ({"size": 8}, "--size 8 is out of range; it must be 0, or between 16 and 32"),
        ({"limit": 9}, "--limit 9 is out of range"),
        ({"steps": (1, 9)}, "--steps 9 is out of range"),
        ({"steps": ()}, "--steps is empty; give one or more"),
        ({"steps": (4, 1, 4)}, "--steps has 4 twice; give each once"),
        ({"parts": ()}, "--parts is empty; give one or more"),
    ],
)
def test_a_refusal_says_what_is_allowed(values: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=f"^{message}"):
        Small(**values)


def test_what_is_within_its_range_is_taken():
    check_ranges(Small(count=8, rate=1e-9, size=16, limit=8, steps=(8, 1)))
    assert Small(size=0).limit is None


def test_deferred_checks_come_back():
    with deferred_checks():
        bad = Small(count=0)
    with pytest.raises(ValueError, match="--count 0"):
        bad.check()
    with pytest.raises(ValueError, match="--count 0"):
        Small(count=0)


def test_a_flag_of_a_config_within_a_config_is_named_as_it_is_typed():
    for flags, message in (
        (["--train.learning-rate", "nan"], "--train.learning-rate nan is not a number"),
        (["--model.transformer.num-heads", "5"],
         "--model.transformer.dim 192 is not divisible by 5 heads of even width; change it or "
         "--model.transformer.num-heads"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"^{message}"):
            parse(train_dynamics.Config, "dynamics", flags)
    with pytest.raises(ValueError, match="^--camera-maxval nan is not a number"):
        parse(preprocess.VptConfig, "preprocess_vpt", ["--camera-maxval", "nan"])


def test_values_that_only_go_together_in_the_end_are_taken():
    flags = ["--preset", "lewm", "--model.image-size", "84", "84", "--model.patch-size", "12"]
    model: Any = parse(train_tokenizer.Config, "tokenizer", flags).config.model
    assert model.patch_size == 12


def test_a_config_in_a_checkpoint_is_checked():
    values = to_plain(registry.default_config("vqvae")) | {"codebook_size": 10**9}
    with pytest.raises(ValueError, match="--codebook-size 1000000000 is out of range"):
        from_plain(type(registry.default_config("vqvae")), values)


@pytest.mark.parametrize(
    ("config", "stage", "flag"),
    [(train_controller.Config, "controller", "--methods"),
     (evaluate.Config, "evaluate", "--pair-seeds"), (evaluate.Config, "evaluate", "--parts"),
     (evaluate.Config, "evaluate", "--horizons")],
)  # fmt: skip
def test_a_flag_of_several_values_needs_one(config: type, stage: str, flag: str):
    with pytest.raises(ValueError, match=f"^{flag} is empty; give one or more"):
        parse(config, stage, [flag])
