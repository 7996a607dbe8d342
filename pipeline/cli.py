"""From a command line to a config: defaults, then presets in order, then flags; the last word wins.

No other file knows tyro.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, get_type_hints

import tyro

from data.ranges import CheckedConfig, deferred_checks
from data.shards.build_info import NoShards
from models.config import MethodConfig
from pipeline import presets
from pipeline.empty_folders import removed_if_empty
from pipeline.report_errors import report_errors

if TYPE_CHECKING:
    from pipeline.store.mirror import Mirror

C = TypeVar("C")


@dataclass(frozen=True)
class Parsed(Generic[C]):
    config: C
    presets: list[str]
    given: bool
    """Whether the command line named the presets; else they are those of the run folder."""
    mirror: Mirror | None = None
    """Of a run in an object store."""


def parse(
    config: type[C],
    stage: str | None,
    arguments: Sequence[str],
    description: str = "",
    default_presets: Sequence[str] = (),
    command: str = "",
) -> Parsed[C]:
    """Return the config of a command line.

    `--preset a b` applies the recipes' tables for `stage`, in that order; without it the presets
    are those that the run folder remembers, or `default_presets`.  Every other argument is a flag
    named after a field; the fields of a method are those of the one that the presets chose.
    A published run (hf://USER/NAME@REVISION) is pulled first, and is a folder from there on; so is
    one in an object store (s3://BUCKET/RUN), to which what is written goes.
    An unknown preset or a refused value raises ValueError; an unknown flag exits with tyro's hint.
    `command` is the script's subcommand, for its help.
    """
    if any("hf://" in argument for argument in arguments) and not {"-h", "--help"} & {*arguments}:
        from pipeline.hub.arguments import with_pulled

        arguments = with_pulled(arguments, stage)
    mirror = None
    if any("://" in argument for argument in arguments) and not {"-h", "--help"} & {*arguments}:
        from pipeline.store.arguments import with_fetched

        arguments, mirror = with_fetched(arguments, stage)
    with deferred_checks():  # only the values that are left in the end must go together
        parsed = _parse(config, stage, arguments, description, default_presets, command)
        expanded = _expand_home(parsed.config)
    check_config(expanded)
    return replace(parsed, config=expanded, mirror=mirror)


def _parse(
    config: type[C],
    stage: str | None,
    arguments: Sequence[str],
    description: str,
    default_presets: Sequence[str],
    command: str,
) -> Parsed[C]:
    if stage is None:
        return Parsed(_cli(config, None, arguments, description, command), [], False)
    named, flags = split_presets(arguments)
    names = presets.check_given(named)
    default: Any = _applied(config, stage, names or default_presets)
    run = _run_of(flags, default)
    known = presets.remembered(run) if run else None
    if named and known and known != names:
        print(f"presets: {' '.join(names)} ({run} was begun with {' '.join(known)})")
    if not named:
        names = list(default_presets) if known is None else known
        default = _applied(config, stage, names)
        if names:
            print(f"presets: {' '.join(names)}")
    if "-h" in flags or "--help" in flags:  # only then are all recipes read
        recipes, sizes = presets.recipe_names(), presets.size_names()
        stacked = (
            f"--preset RECIPE [SIZE]: recipes are {', '.join(recipes)}, and sizes "
            f"{', '.join(sizes)}. They stack, flags win, and RUN remembers the ones it was begun "
            f"with."
        )
        description = f"{description.strip()}\n\n{textwrap.fill(stacked, 80)}"
    return Parsed(_cli(config, default, flags, description, command), names, bool(named))


def _cli(
    config: type[C], default: C | None, flags: Sequence[str], description: str, command: str
) -> C:
    config, default = _narrowed(config, _with_defaults(config) if default is None else default)
    with _numbers_in_one_line():
        return tyro.cli(
            config,
            prog=f"{_program()} {command}".strip(),
            args=list(flags),
            description=re.sub(r"\n+", "\n  ", description.strip()),  # else tyro joins lines
            config=(tyro.conf.PositionalRequiredArgs, tyro.conf.AvoidSubcommands),
            default=default,
        )


def _program() -> str:
    """What was called, as it is typed: "python preprocess.py", "python -m bench"."""
    spec = sys.modules["__main__"].__spec__
    if spec is None or not sys.argv[0].endswith(".py"):
        return f"python {Path(sys.argv[0]).name}"
    return f"python -m {spec.name.removesuffix('.__main__')}"


@contextmanager
def _numbers_in_one_line() -> Iterator[None]:
    """Raise ValueError, where tyro draws a box, for a word in the place of a number."""

    def refuse(event: Any) -> None:
        argument, message = getattr(event, "argument", None), str(getattr(event, "message", ""))
        word = re.search(r"(int\(\)|to float).*: '(.*)'$", message)
        if argument is not None and word:
            kind = "whole number" if "int" in word[1] else "number"
            raise ValueError(f"{argument.lowered.name_or_flags[0]} {word[2]} is not a {kind}")

    with tyro._errors.on_parse_error(refuse):  # of the version in requirements.txt
        yield


def check_config(config: Any, prefix: str = "") -> None:
    """Check a config and those within it; ValueError names the flag as it is typed.

    prefix: of the config's flags, such as "train."
    """
    unnamed = unprefixed_fields(type(config))
    names = [field_.name for field_ in fields(config)]
    for name in names:
        inner, key = getattr(config, name), name.replace("_", "-")
        if is_dataclass(inner):
            check_config(inner, prefix if name in unnamed else f"{prefix}{key}.")
        elif isinstance(inner, str | Path):
            _check_text(f"--{prefix}{key}", str(inner))
    if isinstance(config, CheckedConfig):
        try:
            config.check()
        except ValueError as problem:
            keys = "|".join(name.replace("_", "-") for name in names)
            flag = rf"--(?=({keys})\b(?!-))"
            raise ValueError(re.sub(flag, f"--{prefix}", str(problem))) from None


def _check_text(flag: str, value: str) -> None:
    """Refuse a name that is not text: what writes logs and videos takes none."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{flag} {value} is not UTF-8; rename it, or choose another") from None


@cache
def unprefixed_fields(config: type) -> frozenset[str]:
    """Names of nested configs whose flags leave that name out."""
    hints = get_type_hints(config, include_extras=True)
    marks = {name: getattr(hint, "__metadata__", ()) for name, hint in hints.items()}
    return frozenset(name for name in marks if unprefixed() in marks[name])


def _expand_home(config: C) -> C:
    """Replace a leading ~ in every path, also where the shell did not (--run=~/x)."""
    changed: dict[str, Any] = {}
    for field_ in fields(config):  # type: ignore[arg-type]
        value = getattr(config, field_.name)
        if is_dataclass(value):
            changed[field_.name] = _expand_home(value)
        elif isinstance(value, Path):
            changed[field_.name] = value.expanduser()
        elif isinstance(value, str) and value.startswith("~"):
            changed[field_.name] = os.path.expanduser(value)
    return replace(config, **changed)  # type: ignore[type-var]


def _applied(config: type[C], stage: str, names: Sequence[str]) -> C:
    """Apply presets; a command that needs a path keeps its own run folder, not the recipe's."""
    default: Any = _with_defaults(config)
    applied: Any = presets.apply(default, stage, names)
    needs_path = any(value is tyro.MISSING for value in vars(default).values())
    return replace(applied, run=default.run) if needs_path else applied


def _with_defaults(config: type[C]) -> C:
    """Give a config whose fields without a default are missing: flags have to give them, and
    presets change the others."""
    missing = {
        f.name: tyro.MISSING
        for f in fields(config)  # type: ignore[arg-type]
        if f.default is MISSING and f.default_factory is MISSING
    }
    return config(**missing)


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
    # pickled as the class that it narrows: it is nowhere to be imported from
    body["__reduce__"] = lambda made: (config, tuple(getattr(made, f.name) for f in fields(made)))
    narrow: Any = dataclass(frozen=True)(type(config.__name__, (config,), body))
    values = {f.name: getattr(default, f.name) for f in fields(default)}  # type: ignore[arg-type]
    return narrow, narrow(**values)


def _run_of(flags: Sequence[str], default: Any) -> Path | None:
    """Return the run folder in the flags, or the one of `default`, a config or its class."""
    run = getattr(default, "run", None)
    for flag, following in pairwise([*flags, ""]):
        if flag == "--run" and following:
            run = Path(following).expanduser()
        elif flag.startswith("--run="):
            run = Path(flag.removeprefix("--run=")).expanduser()
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
    aliases: tuple[str, ...] = ()
    """Other names by which it is called."""


def run_cli(main: Callable[[C], None], config: type[C], stage: str | None = None) -> None:
    """Run a stage script: parse, run, and report a user's mistake in one line."""
    description = sys.modules[main.__module__].__doc__ or ""
    report_errors(lambda: _run(main, parse(config, stage, sys.argv[1:], description), stage))


def run_commands(commands: Mapping[str, Command], description: str) -> None:
    """Run a script whose first argument names one of `commands`."""

    def dispatch() -> None:
        name = sys.argv[1] if len(sys.argv) > 1 else "--help"
        if name in ("-h", "--help"):
            lines = [f"  {name:<12}{command.description}" for name, command in commands.items()]
            print(f"{description.strip()}\n\n" + "\n".join(lines))
            print("\nEach explains itself with --help.")
            return
        known = {alias: n for n, command in commands.items() for alias in (n, *command.aliases)}
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise ValueError(f"unknown command {name!r}; {hint}there are: {', '.join(commands)}")
        command = commands[known[name]]
        parsed = parse(
            command.config,
            command.stage,
            sys.argv[2:],
            command.description,
            command.default_presets,
            known[name],
        )
        _run(command.main, parsed, command.stage)

    report_errors(dispatch)


def _run(main: Callable[[C], None], parsed: Parsed[C], stage: str | None) -> None:
    """Run a stage, and remember its presets in the run folder, also after an interruption.

    After a mistake nothing is remembered: the presets may be the mistake.
    """
    run: Path | None = getattr(parsed.config, "run", None)
    # who starts over with other presets means the rest of the run, too
    begins = stage in presets.FIRST_STAGES or parsed.given
    restart = begins and getattr(parsed.config, "restart", False)
    with _sent(parsed.mirror, stage):
        try:
            with (
                removed_if_empty(run, getattr(parsed.config, "out", None)),
                _live(parsed.config, stage),
            ):
                main(parsed.config)
        except (ValueError, OSError) as problem:
            run = None
            told = _completed(problem, parsed)
            if told is problem:
                raise
            raise told from problem
        finally:
            if stage in presets.BUILD_STAGES and run is not None and run.exists():
                presets.remember(run, parsed.presets, overwrite=restart)


def _live(config: Any, stage: str | None) -> AbstractContextManager[None]:
    """The page of --live, which a stage without it does not import."""
    if stage is None or not getattr(config, "live", 0):
        return nullcontext()
    from pipeline.live_page import followed

    return followed(config, stage)


def _sent(mirror: Mirror | None, stage: str | None) -> AbstractContextManager[None]:
    """Send what is written to the object store that the run is in."""
    if mirror is None:
        return nullcontext()
    from pipeline.store.mirror import sent

    return sent(mirror, makes_shards=stage in presets.FIRST_STAGES)


def _completed(problem: ValueError | OSError, parsed: Parsed[Any]) -> ValueError | OSError:
    """Add to a mistake what only the command line knows."""
    run: Path | None = getattr(parsed.config, "run", None)
    folder: Path | None = getattr(parsed.config, "out", None) or run
    if isinstance(problem, NoShards) and run is not None and problem.folder == run / "shards":
        return NoShards(problem.folder, presets.first_command(run, parsed.presets))
    if isinstance(problem, BrokenPipeError) or not isinstance(problem, OSError):
        return problem
    if folder is not None and problem.errno and not problem.filename:
        return ValueError(f"{problem.strerror}, in {folder} or on standard output")
    return problem
