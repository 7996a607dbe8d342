"""Presets: tables of recipes applied to a stage's config, and remembered by the run folder."""

from __future__ import annotations

import difflib
import importlib
import json
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import recipes
from data.io.files import atomic_write, parse_json, read_text
from data.io.messages import command

C = TypeVar("C")
FILE = "run.json"
FALLBACK = "pusht"  # the recipe whose sizes are used where none is named
FIRST_STAGES = (
    "preprocess_pusht",
    "preprocess_vpt",
    "preprocess_arrays",
    "preprocess_gym",
    "preprocess_images",
    "preprocess_video",
)
BUILD_STAGES = (*FIRST_STAGES, "tokenizer", "dynamics", "controller")  # these write run.json
STAGES = (*BUILD_STAGES, "play", "evaluate")


class NoStage(ValueError):
    """A recipe says that it has no such stage: there is nothing to do, and nothing wrong."""


def recipe_names() -> list[str]:
    """Return the names of the files in recipes/."""
    return sorted(module.name for module in pkgutil.iter_modules(recipes.__path__))


def size_names() -> list[str]:
    """Return the sizes of all recipes, each once."""
    found: dict[str, None] = {}
    for name in recipe_names():
        found |= dict.fromkeys(_sizes(_recipe(name)))
    return list(found)


def check(names: Sequence[str]) -> list[str]:
    """Return the presets, the first one a recipe; raise ValueError for an unknown one."""
    known = recipe_names()
    given = [name for name in names if name in known] or [FALLBACK]
    mine = {size for name in given for size in _sizes(_recipe(name))}
    for name in names:
        if name in known or name in mine:
            continue
        sizes = size_names()  # only now are the other recipes read
        if name not in sizes:
            near = difflib.get_close_matches(name, [*known, *sizes], n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise ValueError(
                f"unknown preset {name!r}; {hint}recipes are {', '.join(known)}, and their sizes "
                f"{', '.join(sizes)}"
            )
    if names and names[0] not in known:
        names = [FALLBACK, *names]
    for index, name in enumerate(names):
        if name not in known:
            _owner(names[:index], name)
        elif not hasattr(_recipe(name), "RUN"):  # it changes what is before it
            after = [other for other in names[index:] if other in known and other != name]
            if after and hasattr(_recipe(after[-1]), "RUN"):
                raise ValueError(
                    f"{after[-1]} replaces what {name} changes; give {name} after {after[-1]}"
                )
    return list(names)


def check_given(names: Sequence[str]) -> list[str]:
    """Check what a command line names, also that no size stands before a recipe that has it too and
    gets no size of its own: it would put its largest one over what was asked for.

    A run that was begun so keeps its presets.
    """
    names, known = check(names), recipe_names()
    for index, name in enumerate(names):
        sizes = _sizes(_recipe(name)) if name in known else {}
        before = [size for size in names[:index] if size in sizes]
        if before and not any(size in sizes for size in names[index + 1 :]):
            better = " ".join(_each_with(before[-1], names))
            raise ValueError(
                f"{name} after {before[-1]} replaces what {before[-1]} set, and has a size of that "
                f"name; give --preset {better}"
            )
    return names


def _each_with(size: str, names: Sequence[str]) -> list[str]:
    """Presets with a size after each recipe that has it, and is given none."""
    found: list[str] = []
    for name, after in zip(names, [*names[1:], ""], strict=True):
        sizes = _sizes(_recipe(name)) if name in recipe_names() else {}
        found += [name, size] if size in sizes and after not in sizes else [name]
    return found


def apply(config: C, stage: str, names: Sequence[str]) -> C:
    """Apply the table that each preset has for a stage; without one it changes nothing but `run`,
    the folder of the recipe.  NoStage for one that a recipe says it does not have (None)."""
    names = check(names)
    for index, name in enumerate(names):
        if name in recipe_names():
            module = _recipe(name)
            table = getattr(module, stage.upper(), {})
            if table is None:
                raise NoStage(
                    f"{name} has no {stage} of its own, so there is nothing to do: its dynamics "
                    f"reads frames (python train_dynamics.py)"
                )
            if hasattr(module, "RUN") and hasattr(config, "run"):
                table = {"run": module.RUN} | table
        else:
            table = _sizes(_owner(names[:index], name))[name].get(stage, {})
        has_optimizer = hasattr(getattr(config, "train", None), "optimizer")
        if has_optimizer and {"model", "train.steps"} & table.keys():
            # an optimizer goes with the steps that were measured with it, and with no others
            table = {"train.optimizer": "adamw"} | table
        config = changed(config, table, f"--preset {name}")
    return config


def lacks(names: Sequence[str], stage: str) -> bool:
    """Whether a recipe among these presets says that it has no such stage."""
    recipes_named = [_recipe(name) for name in names if name in recipe_names()]
    return any(getattr(recipe, stage.upper(), {}) is None for recipe in recipes_named)


def changed(config: C, values: Mapping[str, Any], source: str) -> C:
    """Set fields by their dotted names, and methods by their names in the registry.

    All fields of a dataclass change at once, because its checks compare them.
    """
    inner: dict[str, dict[str, Any]] = {}
    own: dict[str, Any] = {}
    known = [field.name for field in fields(config)] if is_dataclass(config) else []
    for name, value in values.items():
        head, _, rest = name.partition(".")
        if head not in known:
            raise ValueError(
                f"{source} sets {head}, which {type(config).__name__} does not have (it has "
                f"{', '.join(known) or 'no fields'}); leave it out, or name another recipe before "
                f"it"
            )
        if rest:
            inner.setdefault(head, {})[rest] = value
        else:
            now = getattr(config, head)
            if is_dataclass(now) and isinstance(value, str):
                from models import registry  # and PyTorch, which a command may not need

                value = registry.default_config(value)
            own[head] = Path(value) if isinstance(now, Path) else value
    for head, below in inner.items():
        own[head] = changed(own.get(head, getattr(config, head)), below, source)
    return replace(config, **own) if own else config  # type: ignore[type-var]


def remembered(run: Path) -> list[str] | None:
    """Return the presets that a run folder was begun with; None without a run.json."""
    path = run / FILE
    if not path.exists():
        return None
    try:
        content = parse_json(read_text(path))
        names = content["presets"]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError("presets must be a list of names")
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise ValueError(
            f"{path} cannot be read ({type(problem).__name__}: {problem}); delete it, and give "
            f"--preset once more"
        ) from None
    try:
        return check(names)
    except ValueError as problem:
        raise ValueError(f"{path}: {problem}; delete it, and give --preset once more") from None


def remember(run: Path, names: Sequence[str], overwrite: bool = False) -> None:
    """Write the presets into a run folder that has none yet, or `overwrite` those it has.

    Of several processes the main one writes.
    """
    from data.processes import rank_and_world_size

    if rank_and_world_size()[0] == 0 and (overwrite or not remembered(run)):
        run.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"format": 1, "presets": list(names)})
        atomic_write(run / FILE, text.encode())


def first_command(run: Path, names: Sequence[str]) -> str:
    """Return the command of stage 1 for a run of these presets, or of those it was begun with."""
    begun = remembered(run)
    if begun == []:  # only arrays begin without presets
        return command("preprocess.py", "arrays", "PATH", "--run", run)
    names = names or begun or []
    if not names:  # where an import failed, nothing is known of the source
        return command("preprocess.py", "SOURCE", "--run", run)
    named = [_recipe(name) for name in names if name in recipe_names()]
    sources = [module.SOURCE for module in [_recipe(FALLBACK), *named] if hasattr(module, "SOURCE")]
    return command("preprocess.py", *sources[-1], "--run", run, "--preset", *names)


def _recipe(name: str) -> ModuleType:
    return importlib.import_module(f"recipes.{name}")


def _sizes(module: ModuleType) -> dict[str, dict[str, dict[str, Any]]]:
    return getattr(module, "SIZES", {})


def _owner(before: Sequence[str], size: str) -> ModuleType:
    """Return the last recipe in `before` that has the size; raise ValueError if none has it."""
    named = [name for name in before if name in recipe_names()]
    for name in reversed(named):
        if size in _sizes(_recipe(name)):
            return _recipe(name)
    last = _sizes(_recipe(named[-1]))
    raise ValueError(
        f"{named[-1]} has no size {size!r}; it has {', '.join(last) or 'none'}"
        if len(named) == 1
        else f"none of {', '.join(named)} has a size {size!r}"
    )
