"""Flags of every command, settings of every method, and what presets set: from the configs.

This imports the project, PyTorch with it.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from attribute_docs import field_docs
from data.ranges import Range
from data.shards.build_shards import available_cpus
from models import registry
from models.config import MethodConfig
from openings import opening
from pipeline import presets
from pipeline.cli import Command, unprefixed_fields
from pipeline.training.train_config import TrainConfig

STAGES = ("train_tokenizer", "train_dynamics", "train_controller", "play", "evaluate", "serve")
SUBCOMMANDS = {
    "preprocess.py": "preprocess",
    "python -m pipeline.export": "pipeline.export.__main__",
}
MODULES = {
    "pipeline.publish": "pipeline.publish",
    "pipeline.pull": "pipeline.pull",
    "pipeline.runs": "pipeline.runs",
    "pipeline.client.watch_video": "pipeline.client.watch_video",
    "evaluation.compare": "evaluation.compare.__main__",
    "evaluation.latents": "evaluation.latents.__main__",
    "evaluation.live": "evaluation.live.__main__",
    "bench": "bench.__main__",
    "bench.browser_load": "bench.browser_load",
    "bench.page_load": "bench.page_load",
    "bench.serve_load": "bench.serve_load",
}
HEAD = ["| Flag | Default | |", "|---|---|---|"]
SETTINGS = "Steps and batch of a stage: by default, under a recipe, under its size, and with a flag"


def flags_pages() -> dict[str, str]:
    """Page to Markdown."""
    return {
        "reference/flags.md": _flags_page(),
        "reference/training-settings.md": _training_page(),
        "reference/methods.md": _methods_page(),
        "reference/presets.md": _presets_page(),
    }


# -- configs ------------------------------------------------------------------------------------


def _rows(config: type, prefix: str = "") -> Iterator[str]:
    """A row for each flag of a config, nested ones with their prefix."""
    hints = get_type_hints(config, include_extras=True)
    bare = unprefixed_fields(config)
    docs = _docs(config)
    for found in fields(config):
        hint = hints[found.name]
        plain = get_args(hint)[0] if get_origin(hint) is Annotated else hint
        flag = f"--{prefix}{found.name.replace('_', '-')}"
        doc = docs.get(found.name, "")
        if plain is MethodConfig:
            yield f"| `{flag}.*` | | the settings of the method ([methods](methods.md)) |"
        elif plain is TrainConfig:
            yield f"| `{flag}.*` | | [training settings](training-settings.md). {_cell(doc)} |"
        elif isinstance(plain, type) and is_dataclass(plain):
            inner = prefix if found.name in bare else f"{prefix}{found.name.replace('_', '-')}."
            yield from _rows(plain, inner)
        else:
            allowed = _allowed(hint)
            yield f"| `{flag}` | {_default(found)} | {_cell(doc)}{allowed} |"


@cache
def _docs(config: type) -> dict[str, str]:
    """Sentences under the fields, those of base classes included."""
    found: dict[str, str] = {}
    for owner in reversed(config.__mro__):
        if is_dataclass(owner) and (file := inspect.getsourcefile(owner)):
            found |= field_docs(Path(file), owner.__name__)
    return found


def _default(found: Field[Any]) -> str:
    if found.default is MISSING and found.default_factory is MISSING:
        return "required"
    value = found.default_factory() if found.default is MISSING else found.default  # type: ignore
    if found.name == "num_workers" and value == available_cpus():
        return "one a core"
    if value is None or value == "" or value == ():
        return "none"
    if isinstance(value, tuple):
        return f"`{' '.join(map(str, value))}`"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"`{value}`"


def _allowed(hint: Any) -> str:
    """What a value must be, as a sentence."""
    words = [str(choice) for choice in _choices(hint)]
    ranges = [m for m in getattr(hint, "__metadata__", ()) if isinstance(m, Range)]
    said = f" One of {', '.join(f'`{word}`' for word in words)}." if words else ""
    return said + "".join(f" {str(found)[0].upper()}{str(found)[1:]}." for found in ranges)


def _choices(hint: Any) -> Iterator[Any]:
    for argument in get_args(hint):
        if get_origin(hint) is Literal:
            yield argument
        else:
            yield from _choices(argument)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


# -- pages --------------------------------------------------------------------------------------


def _flags_page() -> str:
    lines = [
        "# Flags",
        *opening("python train_dynamics.py --help", "../images/settings.svg", SETTINGS),
        "What `--help` of each command lists. A preset changes defaults, and a flag wins.",
        "Made from the configs by `make docs`.",
        "",
    ]
    for call, module in SUBCOMMANDS.items():
        commands: Mapping[str, Command] = importlib.import_module(module).COMMANDS
        for name, command in commands.items():
            script = f"python {call}" if call.endswith(".py") else call
            lines += [f"## `{script} {name}`", "", f"{command.description}.", "", *HEAD]
            lines += [*_rows(command.config), ""]
    for stage in STAGES:
        module = importlib.import_module(stage)
        lines += [f"## `python {stage}.py`", "", _first_line(module), "", *HEAD]
        lines += [*_rows(module.Config), ""]
    for name, path in MODULES.items():
        module = importlib.import_module(path)
        lines += [f"## `python -m {name}`", "", _first_line(module), "", *HEAD]
        lines += [*_rows(module.Config), ""]
    return "\n".join(lines)


def _first_line(module: Any) -> str:
    return (module.__doc__ or "").strip().split("\n")[0]


def _training_page() -> str:
    lines = [
        "# Training settings",
        *opening(
            "python train_dynamics.py --run runs/first --train.seed 1 --train.schedule plateau",
            "../images/schedules.svg",
            "The learning rate by step: constant, or falling as a cosine",
        ),
        "The same in every stage: `--train.*`. The controllers have a prefix for each training, "
        "such as `--bc.*` and `--goal-policy-train.*`. What is below are the defaults of the "
        "class; each stage and each preset has its own ([presets](presets.md)).",
        "",
        "[Training](training.md) explains resuming and several processes.",
        "",
        *HEAD,
        *_rows(TrainConfig, "train."),
    ]
    return "\n".join(lines)


def _methods_page() -> str:
    lines = [
        "# Settings of the methods",
        *opening(
            "python train_tokenizer.py --preset keypoints --help",
            "../images/roles.svg",
            "Frames, latents, states and actions flow between the three roles",
        ),
        "The fields of a method's config are flags, `--model.*`, of the stage that trains it. A "
        "preset chooses the method, and a run remembers it. A controller beside the main one has a "
        "prefix of its own, such as `--task-cost.*`.",
        "",
    ]
    roles = (
        ("tokenizer", "train_tokenizer.py", registry.TOKENIZERS),
        ("dynamics", "train_dynamics.py", registry.DYNAMICS),
        ("controller", "train_controller.py", registry.CONTROLLERS),
    )
    for role, script, methods in roles:
        lines += [f"## {role.capitalize()}", ""]
        for name, entry in methods.items():
            config, method = entry()
            doc = (inspect.getdoc(method) or "").split("\n\n")[0].replace("\n", " ")
            path = entry.module.replace(".", "/")
            lines += [f"### `{name}`", "", f"`{path}.py`, trained by `{script}`. {_cell(doc)}", ""]
            lines += [*HEAD, *_rows(config, "model."), ""]
    return "\n".join(lines)


def _presets_page() -> str:
    lines = [
        "# Presets",
        *opening(
            "python train_tokenizer.py --run runs/pusht --preset keypoints cpu30",
            "../images/settings.svg",
            SETTINGS,
        ),
        "`--preset RECIPE [SIZE]`: a recipe is a file of `recipes/`, and what it sets in each "
        "stage is below, followed by what each size sets on top. [Recipes](recipes.md) says how "
        "one is made.",
        "",
    ]
    for name in presets.recipe_names():
        recipe = importlib.import_module(f"recipes.{name}")
        lines += [f"## `{name}`", "", _first_line(recipe), ""]
        for stage in presets.STAGES:
            lines += _table(stage, getattr(recipe, stage.upper(), {}), 3)
        for size, stages in getattr(recipe, "SIZES", {}).items():
            lines += [f"### `{name} {size}`", ""]
            for stage, table in stages.items():
                lines += _table(stage, table, 4)
    return "\n".join(lines)


def _table(stage: str, table: dict[str, Any] | None, level: int) -> list[str]:
    if table is None:
        return [f"**{stage}**: the recipe has no such stage.", ""]
    if not table:
        return []
    settings = ", ".join(
        f"`{key.replace('_', '-')} {' '.join(map(str, v)) if isinstance(v, tuple) else v}`"
        for key, v in table.items()
    )
    return [f"**{stage}**: {settings}", ""]
