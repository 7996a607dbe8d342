"""From a command line to a config: defaults, then presets in order, then flags; the last word wins.

No other file knows tyro.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import tyro

C = TypeVar("C")
Presets = Mapping[str, Callable[[C], C]]


def parse(
    config: type[C], presets: Presets[C], arguments: Sequence[str], description: str = ""
) -> C:
    """Give the config that the arguments ask for.

    `--preset a b` applies presets["a"], then presets["b"]; every other argument is a flag named
    after a field.  ValueError names an unknown preset; an unknown flag exits with tyro's own hint.
    """
    names, flags = split_presets(arguments)
    default = config()
    for name in names:
        if name not in presets:
            near = difflib.get_close_matches(name, presets, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise ValueError(f"unknown preset {name!r}; {hint}there are: {', '.join(presets)}")
        default = presets[name](default)
    about = f"{description}\n\n--preset NAME [NAME ...]: {', '.join(presets)} (they stack; flags win)"
    return tyro.cli(config, default=default, args=flags, description=about)


def split_presets(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Part `--preset a b` (or --preset=a) from the other arguments."""
    names: list[str] = []
    flags: list[str] = []
    taking = False
    for argument in arguments:
        if argument == "--preset":
            taking = True
        elif argument.startswith("--preset="):
            names += argument.removeprefix("--preset=").split(",")
        elif taking and not argument.startswith("-"):
            names.append(argument)
        else:
            taking = False
            flags.append(argument)
    return names, flags


def run(main: Callable[[C], None], config: type[C], presets: Presets[C]) -> None:
    """Be the entry of a stage script: parse, run, and answer a user's mistake in one line."""
    # CPU threads that wait by spinning steal the core from the process next to them.
    os.environ.setdefault("KMP_BLOCKTIME", "1")
    description = sys.modules[main.__module__].__doc__ or ""
    try:
        main(parse(config, presets, sys.argv[1:], description))
    except (ValueError, OSError) as problem:
        if os.environ.get("DREAMSTAGE_TRACEBACK"):
            raise
        print(f"error: {problem}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("stopped; run the same command again to go on", file=sys.stderr)
        raise SystemExit(130) from None
