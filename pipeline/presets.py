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
from data.files import atomic_write
from models import registry

C = TypeVar("C")
FILE = "run.json"
FALLBACK = "pusht"  # whose sizes are meant where no recipe is named
FIRST = ("preprocess_pusht", "preprocess_vpt", "preprocess_arrays")
BEGINS = (*FIRST, "tokenizer", "dynamics", "controller")  # stages that write into a run folder


def recipe_names() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(recipes.__path__))


def size_names() -> list[str]:
    """Sizes of all recipes, each once."""
    found: dict[str, None] = {}
    for name in recipe_names():
        found |= dict.fromkeys(_sizes(_recipe(name)))
    return list(found)


def check(names: Sequence[str]) -> list[str]:
    """Give the presets with their recipe first; ValueError names one that there is not."""
    known, sizes = recipe_names(), size_names()
    for name in names:
        if name not in known and name not in sizes:
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
    return list(names)


def apply(config: C, stage: str, names: Sequence[str]) -> C:
    """Change a stage's config as each preset says; one that does not name the stage changes
    nothing."""
    for index, name in enumerate(names):
        if name in recipe_names():
            module = _recipe(name)
            table = getattr(module, stage.upper(), {})
            if hasattr(module, "RUN") and hasattr(config, "run"):
                table = {"run": module.RUN} | table
        else:
            table = _sizes(_owner(names[:index], name))[name].get(stage, {})
        config = changed(config, table, f"--preset {name}")
    return config


def changed(config: C, values: Mapping[str, Any], source: str) -> C:
    """Set fields by their dotted names; a method is given by its name in the registry.

    All fields of one dataclass change at once, so that its own checks see the whole.
    """
    inner: dict[str, dict[str, Any]] = {}
    own: dict[str, Any] = {}
    for name, value in values.items():
        head, _, rest = name.partition(".")
        known = [field.name for field in fields(config)]  # type: ignore[arg-type]
        if head not in known:
            raise ValueError(
                f"{source} sets {head}, which {type(config).__name__} does not have (it has "
                f"{', '.join(known)}); leave it out, or name another recipe before it"
            )
        if rest:
            inner.setdefault(head, {})[rest] = value
        else:
            now = getattr(config, head)
            if is_dataclass(now) and isinstance(value, str):
                value = registry.default_config(value)
            own[head] = Path(value) if isinstance(now, Path) else value
    for head, below in inner.items():
        own[head] = changed(own.get(head, getattr(config, head)), below, source)
    return replace(config, **own) if own else config  # type: ignore[type-var]


def remembered(run: Path) -> list[str] | None:
    """The presets that a run folder was begun with; None where it does not say."""
    path = run / FILE
    if not path.exists():
        return None
    try:
        known = json.loads(path.read_text())
        names = known["presets"]
        if not all(isinstance(name, str) for name in names):
            raise ValueError("presets are no names")
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise ValueError(
            f"{path} cannot be read ({type(problem).__name__}: {problem}); delete it, and give "
            f"--preset once more"
        ) from None
    return check(names)


def remember(run: Path, names: Sequence[str], anew: bool = False) -> None:
    """Keep the presets in the run folder; those that it was begun with stay, unless `anew`."""
    if anew or remembered(run) is None:
        run.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"format": 1, "presets": list(names)})
        atomic_write(run / FILE, text.encode())


def _recipe(name: str) -> ModuleType:
    return importlib.import_module(f"recipes.{name}")


def _sizes(module: ModuleType) -> dict[str, dict[str, dict[str, Any]]]:
    return getattr(module, "SIZES", {})


def _owner(before: Sequence[str], size: str) -> ModuleType:
    """The last recipe in `before` that has the size; ValueError where none has."""
    named = [name for name in before if name in recipe_names()]
    for name in reversed(named):
        if size in _sizes(_recipe(name)):
            return _recipe(name)
    last = _sizes(_recipe(named[-1])) or {}
    raise ValueError(
        f"{named[-1]} has no size {size!r}; it has {', '.join(last) or 'none'}"
        if len(named) == 1
        else f"none of {', '.join(named)} has a size {size!r}"
    )
