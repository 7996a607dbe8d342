"""What configs share: their checks, and their plain values in a checkpoint."""

from __future__ import annotations

import types
from dataclasses import asdict, fields, is_dataclass
from typing import Any, ClassVar, Protocol, TypeVar, get_origin, get_type_hints

C = TypeVar("C")


class MethodConfig(Protocol):
    """Config of a method: a frozen dataclass that stands in models/registry.py."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


def check_positive(config: Any, prefix: str, *names: str) -> None:
    """Raise ValueError for the first of `names` that is below 1; prefix: of its flag."""
    for name in names:
        if getattr(config, name) < 1:
            flag = f"{prefix}{name.replace('_', '-')}"
            raise ValueError(f"{flag} {getattr(config, name)} is below 1; give 1 or more")


def to_plain(config: Any) -> dict[str, Any]:
    """Give a config's values as numbers, strings, lists and dicts."""
    return _plain(asdict(config))


def from_plain(kind: type[C], values: dict[str, Any]) -> C:
    """Undo `to_plain`; ValueError where a field is missing or unknown."""
    hints = get_type_hints(kind)
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    missing, unknown = set(names) - values.keys(), values.keys() - set(names)
    if missing or unknown:
        parts = [f"no {', '.join(sorted(missing))}"] if missing else []
        parts += [f"an unknown {', '.join(sorted(unknown))}"] if unknown else []
        raise ValueError(
            f"a {kind.__name__} with {' and '.join(parts)} was written by another version; use "
            f"that version, or train again"
        )
    given = {}
    for name in names:
        value, hint = values[name], hints[name]
        if is_dataclass(hint) and isinstance(value, dict):
            value = from_plain(hint, value)  # type: ignore[arg-type]
        elif isinstance(value, list) and get_origin(hint) in (tuple, types.UnionType):
            value = tuple(value)
        given[name] = value
    return kind(**given)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, tuple | list) else value
