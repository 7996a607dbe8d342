"""Nested containers of tensors: flattened to a list, and rebuilt from one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor

TreeSpec = str | tuple[Any, ...]
"""What holds the tensors: equal for trees of equal structure, whatever the tensors are."""

_TENSOR = "tensor"


def flatten(value: Any, tensors: list[Tensor]) -> TreeSpec:
    """Append the tensors of nested dataclasses, dicts, lists and tuples to `tensors`; return the
    spec.

    Keys of dicts are strings, and taken in sorted order.  Any other value becomes part of the spec.
    """
    if isinstance(value, Tensor):
        tensors.append(value)
        return _TENSOR
    if isinstance(value, (list, tuple)):
        return (list, *[flatten(child, tensors) for child in value])
    if isinstance(value, dict):
        assert all(isinstance(key, str) for key in value), f"keys must be strings: {list(value)}"
        keys = tuple(sorted(value))
        return (dict, keys, *[flatten(value[key], tensors) for key in keys])
    if is_dataclass(value) and not isinstance(value, type):
        children = [flatten(getattr(value, f.name), tensors) for f in fields(value)]
        return (type(value), *children)
    return (None, value)


def unflatten(spec: TreeSpec, tensors: Iterator[Tensor]) -> Any:
    """Undo `flatten` with other tensors; tuples come back as lists, dicts in sorted order."""
    if isinstance(spec, str):
        return next(tensors)
    node_type, *rest = spec
    if node_type is None:
        return rest[0]
    if node_type is dict:
        keys, *child_specs = rest
        children = [unflatten(child, tensors) for child in child_specs]
        return dict(zip(keys, children, strict=True))
    children = [unflatten(child, tensors) for child in rest]
    if node_type is list:
        return children
    return node_type(**{f.name: part for f, part in zip(fields(node_type), children, strict=True)})
