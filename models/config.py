"""Numbers of a config that count something, of which there has to be one."""

from __future__ import annotations

from typing import Any


def check_positive(config: Any, prefix: str, *names: str) -> None:
    """ValueError names the first of these fields that is below 1; flags: what its flag begins
    with."""
    for name in names:
        if getattr(config, name) < 1:
            flag = prefix + name.replace("_", "-")
            raise ValueError(f"{flag} {getattr(config, name)} is below 1; give 1 or more")
