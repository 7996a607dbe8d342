"""What the configs of methods share: their plain values in a checkpoint."""

from __future__ import annotations

import types
from dataclasses import asdict, fields, is_dataclass
from typing import (
    Any,
    ClassVar,
    Literal,
    Protocol,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from data.io.messages import first_few

C = TypeVar("C")


class MethodConfig(Protocol):
    """Config of a method: a frozen dataclass that stands in models/registry.py."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


def to_plain(config: Any) -> dict[str, Any]:
    """Give a config's values as numbers, strings, lists and dicts."""
    return _plain(asdict(config))


def from_plain(kind: type[C], values: dict[str, Any]) -> C:
    """Undo `to_plain`; ValueError where a field is missing or unknown.

    Fields in the class's `ADDED` may be missing: what was written before they were added is what
    their defaults say.
    """
    hints = get_type_hints(kind)
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    added = getattr(kind, "ADDED", frozenset())
    names = [name for name in names if name in values or name not in added]
    missing, unknown = set(names) - values.keys(), values.keys() - set(names)
    if missing or unknown:
        parts = [f"no {first_few(sorted(missing))}"] if missing else []
        parts += [f"an unknown {first_few(sorted(map(str, unknown)))}"] if unknown else []
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
        if not _fits(value, hint):
            raise ValueError(f"the {name} of a {kind.__name__} is {value!r:.40}")
        given[name] = value
    return kind(**given)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a field's type; True for types that no plain value has."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return value in inner
    if origin in (Union, types.UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        kinds = [inner[0]] * len(value) if inner[-1] is ... else list(inner)
        return len(kinds) == len(value) and all(map(_fits, value, kinds))
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint) if isinstance(hint, type) else True


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, tuple | list) else value
