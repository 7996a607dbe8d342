"""From a config back to the flags that give it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from pipeline.cli import unprefixed_fields


def flags_between(base: Any, config: Any, leave_out: Sequence[str] = ()) -> list[str]:
    """Give the words of a command line that turn `base` into `config`, two configs of one class.

    leave_out: fields that do not count.
    """
    return [word for words in _differences(base, config, "", leave_out) for word in words]


def repeatable(words: Sequence[str]) -> list[str]:
    """Give a command line as it is kept to make the same again: without what it does not need."""
    kept, skips = [], False
    for word in words:
        if not skips and word != "--restart" and word.partition("=")[0] != "--live":
            kept.append(word)
        skips = word == "--live"
    return kept


def _differences(
    base: Any, config: Any, prefix: str, leave_out: Sequence[str]
) -> Iterator[list[str]]:
    unnamed = unprefixed_fields(type(config))
    for field in fields(config):
        before, now = getattr(base, field.name), getattr(config, field.name)
        if field.name in leave_out or before == now:
            continue
        flag = f"{prefix}{field.name.replace('_', '-')}"
        if is_dataclass(now) and type(before) is type(now):
            inner = prefix if field.name in unnamed else f"{flag}."
            yield from _differences(before, now, inner, ())
        elif isinstance(now, bool):
            head, _, name = flag.rpartition(".")
            dotted = f"{head}." if head else ""
            yield [f"--{flag}" if now else f"--{dotted}no-{name}"]
        elif isinstance(now, tuple):
            yield [f"--{flag}", *map(str, now)]
        else:
            yield [f"--{flag}", str(now)]
