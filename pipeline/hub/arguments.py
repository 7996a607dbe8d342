"""Published runs on a command line: `--run hf://...` becomes a folder, and an address to begin
with (`--train.init-from hf://...`) is pinned to a commit."""

from __future__ import annotations

from collections.abc import Sequence

from data.io.hub_address import is_address
from pipeline import presets
from pipeline.hub.pull_run import local_run, pinned

FOLDERS = ("--run", "--shards")
INIT_FROM = ".init-from"  # of any training: --train.init-from, --bc.init-from


def with_pulled(arguments: Sequence[str], stage: str | None) -> list[str]:
    """Pull each published run that flags name; return the arguments with what it became.

    ValueError where stage 1 would write into one.
    """
    found: list[str] = []
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if not (equals and flag.startswith("--")):
            flag, value = (found[-1] if found else ""), argument
        is_folder, is_pinned = flag in FOLDERS, flag.startswith("--") and flag.endswith(INIT_FROM)
        if not is_address(value) or not (is_folder or is_pinned):
            found.append(argument)
            continue
        if flag == "--run" and stage in presets.FIRST_STAGES:
            raise ValueError(
                f"--run {value} is a published run, and recordings are preprocessed into a folder "
                f"of yours; give --run another, such as runs/mine"
            )
        made = str(local_run(value, flag)) if is_folder else pinned(value, flag)
        found.append(f"{flag}={made}" if equals else made)
    return found
