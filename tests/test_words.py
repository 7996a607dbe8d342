"""Words that were given up for the field's do not come back (docs/glossary.md).

Looked for in flags and their choices, presets, metric keys, class names, file names, and in the
commands that the docs show.
"""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import given_up_words
import pytest
from given_up_words import (
    ANYWHERE,
    CHOICES,
    CLASSES,
    FILES,
    FLAGS,
    LOSSES,
    METRICS,
    OLD_FLAGS,
    Words,
)  # fmt: skip

import evaluate
import play
import preprocess
import serve
import train_controller
import train_dynamics
import train_tokenizer
from bench import browser_load, long_play, page_load, serve_load
from bench.__main__ import Config as BenchConfig
from evaluation.compare import __main__ as compare
from evaluation.latents import __main__ as latents
from evaluation.live import __main__ as live
from evaluation.report.metrics_schema import empty_metrics
from models import registry
from pipeline import presets, publish, pull, runs
from pipeline.client import watch_video
from pipeline.export import __main__ as export

ROOT = Path(__file__).parents[1]


def problem(name: str, table: Words) -> str | None:
    """Say what is wrong with a name, or None: it is in `table`, or has a word of ANYWHERE."""
    if name in table:
        return f"{name}: {table[name]}"
    parts = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)
    joined = f"_{'_'.join(parts)}_".lower()
    return next((f"{name}: {ANYWHERE[w]}" for w in ANYWHERE if f"_{w}_" in joined), None)


def problems(names: Any, table: Words) -> list[str]:
    return sorted({found for name in names if (found := problem(name, table))})


# -- where names are found -------------------------------------------------------------------


def flag_names(config: type) -> Iterator[str]:
    """Fields of a config, and of the configs in it."""
    hints = get_type_hints(config)
    for f in fields(config):
        yield f.name
        hint = hints[f.name]
        if isinstance(hint, type) and is_dataclass(hint):
            yield from flag_names(hint)


def flag_choices(config: type) -> Iterator[str]:
    """Words that a field of a config, or of the configs in it, may be set to."""
    hints = get_type_hints(config)
    for f in fields(config):
        hint = hints[f.name]
        if isinstance(hint, type) and is_dataclass(hint):
            yield from flag_choices(hint)
        yield from _literals(hint)


def _literals(hint: Any) -> Iterator[str]:
    for argument in get_args(hint):
        if get_origin(hint) is Literal:
            yield str(argument)
        else:
            yield from _literals(argument)


def stage_configs() -> list[type]:
    """Configs of all commands, and of all methods that they may have."""
    methods = registry.TOKENIZERS | registry.DYNAMICS | registry.CONTROLLERS
    return [
        *(command.config for command in preprocess.COMMANDS.values()),
        *(m.Config for m in (train_tokenizer, train_dynamics, train_controller, evaluate, play)),
        *(command.config for command in export.COMMANDS.values()),
        publish.Config,
        pull.Config,
        runs.Config,
        compare.Config,
        browser_load.Config,
        serve.Config,
        serve_load.Config,
        latents.Config,
        watch_video.Config,
        long_play.Config,
        page_load.Config,
        live.Config,
        BenchConfig,
        *(method()[0] for method in methods.values()),
    ]


def metric_keys(metrics: Mapping[str, Any]) -> Iterator[str]:
    for key, value in metrics.items():
        yield key
        if isinstance(value, Mapping):
            yield from metric_keys(value)


def loss_keys(source: str) -> Iterator[str]:
    """Keys of the dicts in functions that are called loss or validate."""
    for function in ast.walk(ast.parse(source)):
        if not isinstance(function, ast.FunctionDef):
            continue
        if function.name != "loss" and not function.name.startswith("validate"):
            continue
        for node in ast.walk(function):
            keys: list[ast.expr | None] = []
            if isinstance(node, ast.Dict):
                keys = list(node.keys)
            elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
                keys = [node.slice]
            for key in keys:
                if isinstance(key, ast.Constant) and isinstance(key.value, str):
                    yield key.value


def class_names(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef):
            yield node.name.lstrip("_")


def function_names(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name


def file_stems(paths: list[Path]) -> Iterator[str]:
    for path in paths:
        yield path.stem.removeprefix("test_").replace("-", "_")


def shown_flags(text: str) -> Iterator[str]:
    """Last parts of the flags in a text: --planner.num-samples -> num_samples."""
    for flag in re.findall(r"(?<![\w-])--([a-z][a-z0-9.-]*)", text):
        yield flag.rstrip(".-").rpartition(".")[2].replace("-", "_")


def tracked(pattern: str) -> list[Path]:
    """Files that git tracks and that are there."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", pattern], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).exists()]


# -- the words --------------------------------------------------------------------------------


def test_flags_have_the_fields_words():
    names = {name for config in stage_configs() for name in flag_names(config)}
    assert "num_elites" in names and "grad_accum_steps" in names  # it looks inside
    assert not problems(names, FLAGS)


def test_choices_and_presets_have_the_fields_words():
    names = {name for config in stage_configs() for name in flag_choices(config)}
    assert "policy_prior" in names
    names |= {*presets.recipe_names(), *presets.size_names()}
    assert not problems(names, CHOICES)


def test_metrics_have_the_fields_words():
    names = set(metric_keys(empty_metrics()))
    assert "code_flip_rate" in names
    assert not problems(names, METRICS)


def test_losses_and_validations_have_the_fields_words():
    paths = [*tracked("models/*.py"), *tracked("evaluation/*.py"), ROOT / "train_controller.py"]
    names = {name for path in paths for name in loss_keys(path.read_text())}
    assert "motion_hinge" in names and "delta_psnr_4" in names
    assert not problems(names, LOSSES)


def test_classes_have_the_fields_words():
    names = {name for path in tracked("*.py") for name in class_names(path.read_text())}
    assert "LatentSpec" in names
    assert not problems(names, CLASSES)


def test_functions_have_the_fields_words():
    paths = [path for path in tracked("*.py") if path.parent.name != "tests"]
    names = {name for path in paths for name in function_names(path.read_text())}
    assert "load_codebook" in names
    assert not problems(names, {})


def test_files_have_the_fields_words():
    names = set(file_stems(tracked("*")))
    assert "planner" in names
    assert not problems(names, FILES)


MAY_NAME_THEM = {Path(__file__), Path(given_up_words.__file__), ROOT / "CHANGELOG.md"}


def test_flags_that_docs_and_commands_show_have_the_fields_words():
    paths = {path for pattern in ("Makefile", "*.md", "*.py") for path in tracked(pattern)}
    found = {
        str(path.relative_to(ROOT)): old
        for path in paths - MAY_NAME_THEM
        if (old := OLD_FLAGS & set(shown_flags(path.read_text())))
    }
    assert not found


# -- a word that is put back is found -----------------------------------------------------------


@dataclass(frozen=True)
class InnerConfig:
    samples: int = 1
    source: Literal["noop", "still"] = "noop"


@dataclass(frozen=True)
class OuterConfig:
    inner: InnerConfig = field(default_factory=InnerConfig)
    guided_keep: int = 1


def test_a_planted_flag_is_found_in_a_config_within_a_config():
    found = problems(flag_names(OuterConfig), FLAGS)
    assert found == ["guided_keep: policy_prior", "samples: num_samples"]
    assert problems(flag_choices(OuterConfig), CHOICES) == ["still: noop"]


def test_a_planted_metric_is_found_at_any_depth():
    metrics = {"goal": {"first_hit": {"amortised": None, "planner": None}}, "codes_changing": None}
    assert problems(metric_keys(metrics), METRICS) == [
        "amortised: goal_policy", "codes_changing: code_flip_rate",
    ]  # fmt: skip


def test_a_planted_term_of_a_loss_is_found():
    source = "def loss(self):\n    found = {'own': 1}\n    found['resting'] = 2\n    return found"
    assert problems(loss_keys(source), LOSSES) == ["own: rollout", "resting: motion_hinge"]
    assert not list(loss_keys("def step(self):\n    return {'own': 1}"))


@pytest.mark.parametrize(
    "name, wanted", [("Glance", "encoder"), ("ToGoal", "plan"), ("_Look", "PixelDecoder"),
                     ("FarLegs", "horizon"), ("Latents", "LatentSpec")],
)  # fmt: skip
def test_a_planted_class_is_found(name: str, wanted: str):
    (found,) = problems(class_names(f"class {name}:\n    pass"), CLASSES)
    assert wanted in found


def test_a_planted_function_is_found():
    assert problems(function_names("def adopt(self, tokenizer): pass"), {}) == [
        "adopt: load_codebook"
    ]


@pytest.mark.parametrize("path", ["tests/test_look.py", "models/hand.py", "docs/led-astray.md"])
def test_a_planted_file_is_found(path: str):
    assert len(problems(file_stems([Path(path)]), FILES)) == 1


def test_a_planted_flag_is_found_in_a_command():
    shown = "make demo; python play.py --goal-steps 50 --goal-policy-train.report-every=5"
    assert set(shown_flags(shown)) & OLD_FLAGS == {"goal_steps", "report_every"}


def test_words_that_only_hold_an_old_one_are_left_alone():
    names = ["LegalAction", "BestOf", "num_samples", "WorldView", "guidelines", "adopted"]
    assert not problems(names, {**CLASSES, **FLAGS})
