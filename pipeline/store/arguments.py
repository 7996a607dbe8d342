"""A run in an object store on a command line: `--run s3://bucket/run` becomes a folder here."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from data.io.object_store import check_address, is_store
from data.shards.remote_shards import CACHE, GIB
from pipeline import presets
from pipeline.store.mirror import Mirror

FOLDER = Path("runs/store")
DEFAULT_GIB = 20.0
FLAG = "--run"
OTHERS = ("--shards", "--out", "--train.init-from")
"""Flags that name folders, and no place in a store."""


def with_fetched(arguments: Sequence[str], stage: str | None) -> tuple[list[str], Mirror | None]:
    """Fetch the run that --run names; give the arguments with its folder, and its mirror."""
    found: list[str] = []
    mirror = None
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if not (equals and flag.startswith("--")):
            flag, value = (found[-1] if found else ""), argument
        if not is_store(value) or flag != FLAG:
            if is_store(value) and flag in OTHERS:
                raise ValueError(
                    f"{flag} {value} is a place in an object store, which only --run may be; copy "
                    f"it to a folder, and name that"
                )
            found.append(argument)
            continue
        check_address(value)
        folder = local_folder(value)
        mirror = Mirror(value, folder, cache_bytes())
        if stage in presets.BUILD_STAGES:
            mirror.store.check_writable()
        mirror.fetch(whole_shards=stage in presets.FIRST_STAGES)
        print(f"run: {value}, in {folder}", flush=True)
        found.append(f"{flag}={folder}" if equals else str(folder))
    return found, mirror


def local_folder(address: str) -> Path:
    """Where a run of a store is here."""
    scheme, _, place = address.partition("://")
    parts = [re.sub(r"[^\w.-]", "_", part) for part in place.strip("/").split("/")]
    return FOLDER.joinpath(scheme, *parts)


def cache_bytes() -> int:
    """What shards of a store may take on this disk."""
    given = os.environ.get(CACHE, str(DEFAULT_GIB))
    try:
        gib = float(given)
    except ValueError:
        gib = -1.0
    if not 0 < gib < 2**20:
        raise ValueError(f"{CACHE}={given} in the environment is no number of GiB above 0")
    return int(gib * GIB)
