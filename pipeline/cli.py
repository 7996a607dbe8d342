"""From a command line to a config: defaults, then presets in order, then flags; the last word wins.

No other file knows tyro.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, Generic, TypeVar, get_type_hints

import tyro

from models.registry import MethodConfig
from pipeline import presets

C = TypeVar("C")


@dataclass(frozen=True)
class Parsed(Generic[C]):
    config: C
    presets: list[str]
    given: bool
    """Whether the command line named the presets; else they are those of the run folder."""


def parse(
    config: type[C],
    stage: str | None,
    arguments: Sequence[str],
    description: str = "",
    default_presets: Sequence[str] = (),
) -> Parsed[C]:
    """Return the config of a command line.

    `--preset a b` applies the recipes' tables for `stage`, in that order; without it the presets
    are those that the run folder remembers, or `default_presets`.  Every other argument is a flag
    named after a field; the fields of a method are those of the one that the presets chose.
    An unknown preset raises ValueError; an unknown flag exits with tyro's hint.
    """
    if stage is None:
        return Parsed(_cli(config, None, arguments, description), [], False)
    named, flags = split_presets(arguments)
    names = presets.check(named)
    complete = _has_defaults(config)
    default: Any = None
    if complete:
        default = presets.apply(config(), stage, names or default_presets)
    run = _run_of(flags, default or config)
    known = presets.remembered(run) if run else None
    if named and known and known != names:
        print(f"presets: {' '.join(names)} ({run} was begun with {' '.join(known)})")
    if not named:
        names = list(default_presets) if known is None else known
        if complete:
            default = presets.apply(config(), stage, names)
        if names:
            print(f"presets: {' '.join(names)}")
    if "-h" in flags or "--help" in flags:  # only then are all recipes read
        recipes, sizes = presets.recipe_names(), presets.size_names()
        description += (
            f"\n\n--preset RECIPE [SIZE]: recipes are {', '.join(recipes)}, and sizes "
            f"{', '.join(sizes)}. They stack, flags win, and RUN remembers the ones it was begun "
            f"with."
        )
    return Parsed(_cli(config, default, flags, description), names, bool(named))


def _cli(config: type[C], default: C | None, flags: Sequence[str], description: str) -> C:
    if default is None and _has_defaults(config):
        default = config()
    given: dict[str, Any] = {}
    if default is not None:
        config, default = _narrowed(config, default)
        given["default"] = default
    return tyro.cli(
        config,
        args=list(flags),
        description=description,
        config=(tyro.conf.PositionalRequiredArgs, tyro.conf.AvoidSubcommands),
        **given,
    )


def _has_defaults(config: type) -> bool:
    return all(
        f.default is not MISSING or f.default_factory is not MISSING
        for f in fields(config)  # type: ignore[arg-type]
    )


def _narrowed(config: type[C], default: C) -> tuple[type[C], C]:
    """Declare each method field as the config it holds, so that its fields become flags."""
    hints = get_type_hints(config)
    methods = {
        f.name: type(getattr(default, f.name))
        for f in fields(config)  # type: ignore[arg-type]
        if hints[f.name] is MethodConfig
    }
    if not methods:
        return config, default
    body: dict[str, Any] = {"__annotations__": methods, "__module__": config.__module__}
    body |= {name: field(default_factory=kind) for name, kind in methods.items()}
    narrow: Any = dataclass(frozen=True)(type(config.__name__, (config,), body))
    values = {f.name: getattr(default, f.name) for f in fields(default)}  # type: ignore[arg-type]
    return narrow, narrow(**values)


def _run_of(flags: Sequence[str], default: Any) -> Path | None:
    """Return the run folder in the flags, or the one of `default`, a config or its class."""
    run = getattr(default, "run", None)
    for flag, following in pairwise([*flags, ""]):
        if flag == "--run" and following:
            run = Path(following)
        elif flag.startswith("--run="):
            run = Path(flag.removeprefix("--run="))
    return run


def unprefixed() -> Any:
    """Leave the name of a nested config out of its flags, for `Annotated`."""
    return tyro.conf.arg(name="")


def split_presets(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split `--preset a b` (or --preset=a,b) from the other arguments."""
    names: list[str] = []
    flags: list[str] = []
    in_preset = False
    for argument in arguments:
        if argument == "--preset":
            in_preset = True
        elif argument.startswith("--preset="):
            names += argument.removeprefix("--preset=").split(",")
        elif in_preset and not argument.startswith("-"):
            names.append(argument)
        else:
            in_preset = False
            flags.append(argument)
    return names, flags


@dataclass(frozen=True)
class Command:
    """A subcommand of a script."""

    main: Callable[[Any], None]
    config: type
    description: str
    stage: str | None = None
    """Its name in recipes; without one it takes no presets."""
    default_presets: tuple[str, ...] = ()


def run_cli(main: Callable[[C], None], config: type[C], stage: str | None = None) -> None:
    """Run a stage script: parse, run, and report a user's mistake in one line."""
    description = sys.modules[main.__module__].__doc__ or ""
    _report_errors(lambda: _run(main, parse(config, stage, sys.argv[1:], description), stage))


def run_commands(commands: Mapping[str, Command], description: str) -> None:
    """Run a script whose first argument names one of `commands`."""

    def dispatch() -> None:
        name = sys.argv[1] if len(sys.argv) > 1 else "--help"
        if name in ("-h", "--help"):
            lines = [f"  {name:<10}{command.description}" for name, command in commands.items()]
            print(f"{description.strip()}\n\n" + "\n".join(lines))
            print("\nEach explains itself with --help.")
            return
        if name not in commands:
            near = difflib.get_close_matches(name, commands, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise ValueError(f"unknown command {name!r}; {hint}there are: {', '.join(commands)}")
        command = commands[name]
        parsed = parse(
            command.config,
            command.stage,
            sys.argv[2:],
            command.description,
            command.default_presets,
        )
        _run(command.main, parsed, command.stage)

    _report_errors(dispatch)


def _run(main: Callable[[C], None], parsed: Parsed[C], stage: str | None) -> None:
    """Run a stage, and remember its presets in the run folder, also after an interruption.

    After a mistake nothing is remembered: the presets may be the mistake.
    """
    run: Path | None = getattr(parsed.config, "run", None)
    restart = stage in presets.FIRST_STAGES and getattr(parsed.config, "restart", False)
    try:
        main(parsed.config)
    except (ValueError, OSError):
        run = None
        raise
    finally:
        if stage in presets.BUILD_STAGES and run is not None and run.exists():
            presets.remember(run, parsed.presets, overwrite=restart)


def _report_errors(body: Callable[[], None]) -> None:
    try:
        body()
    except (ValueError, OSError) as problem:
        if os.environ.get("DREAMSTAGE_TRACEBACK"):
            raise
        print(f"error: {problem}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        again = "without --restart" if "--restart" in sys.argv else "again"
        print(f"stopped; run the same command {again} to resume", file=sys.stderr)
        raise SystemExit(130) from None
