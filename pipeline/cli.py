"""From a command line to a config: defaults, then presets in order, then flags; the last word wins.

No other file knows tyro.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import tyro

C = TypeVar("C")
Presets = Mapping[str, Callable[[C], C]]


def parse(
    config: type[C], presets: Presets[C], arguments: Sequence[str], description: str = ""
) -> C:
    """Give the config that the arguments ask for.

    `--preset a b` applies presets["a"], then presets["a b"] if b means something of its own after
    a, else presets["b"]; every other argument is a flag named after a field; which of several
    methods a field holds is for the presets to say.  ValueError names an unknown preset; an unknown
    flag exits with tyro's own hint.
    """
    preset_names, flags = split_presets(arguments)
    known_presets = [preset_name for preset_name in presets if " " not in preset_name]
    listed = ", ".join(known_presets)
    default = None
    for previous, preset_name in pairwise(["", *preset_names]):
        if preset_name not in known_presets:
            closest = difflib.get_close_matches(preset_name, known_presets, n=1)
            hint = f"did you mean {closest[0]}? " if closest else ""
            raise ValueError(f"unknown preset {preset_name!r}; {hint}there are: {listed}")
        preset = presets.get(f"{previous} {preset_name}", presets[preset_name])
        default = preset(config() if default is None else default)
    if presets:
        description += f"\n\n--preset NAME [NAME ...]: {listed} (they stack; flags win)"
    defaults: dict[str, Any] = {} if default is None else {"default": default}
    return tyro.cli(
        config,
        args=flags,
        description=description,
        config=(tyro.conf.PositionalRequiredArgs, tyro.conf.AvoidSubcommands),
        **defaults,
    )


def flag_aliases(*aliases: str) -> Any:
    """Other names of a flag, for `Annotated`."""
    return tyro.conf.arg(aliases=aliases)


def unprefixed() -> Any:
    """Flags of a config inside a config without its name, for `Annotated`."""
    return tyro.conf.arg(name="")


def split_presets(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Part `--preset a b` (or --preset=a) from the other arguments."""
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
    """A sub-command of a script: what it runs, with which config and presets."""

    main: Callable[[Any], None]
    config: type
    presets: Presets[Any]
    description: str


def run_cli(main: Callable[[C], None], config: type[C], presets: Presets[C]) -> None:
    """Be the entry of a stage script: parse, run, and answer a user's mistake in one line."""
    description = sys.modules[main.__module__].__doc__ or ""
    _report_errors(lambda: main(parse(config, presets, sys.argv[1:], description)))


def run_commands(commands: Mapping[str, Command], description: str) -> None:
    """Be the entry of a script whose first argument names one of `commands`."""

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
        command.main(parse(command.config, command.presets, sys.argv[2:], command.description))

    _report_errors(dispatch)


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
        print(f"stopped; run the same command {again} to go on", file=sys.stderr)
        raise SystemExit(130) from None
