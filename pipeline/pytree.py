"""Tensors inside lists, tuples and dataclasses, and what holds them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor

TreeSpec = str | tuple[Any, ...]

_TENSOR = "tensor"


def flatten(value: Any, tensors: list[Tensor]) -> TreeSpec:
    """The form of nested dataclasses, lists and tuples; their tensors go to the end of a list."""
    if isinstance(value, Tensor):
        tensors.append(value)
        return _TENSOR
    if isinstance(value, (list, tuple)):
        return (list, *[flatten(part, tensors) for part in value])
    if is_dataclass(value) and not isinstance(value, type):
        children = [flatten(getattr(value, f.name), tensors) for f in fields(value)]
        return (type(value), *children)
    return (None, value)


def unflatten(spec: TreeSpec, tensors: Iterator[Tensor]) -> Any:
    """What `taken_apart` took apart, with other tensors; tuples come back as lists."""
    if isinstance(spec, str):
        return next(tensors)
    node_type, *child_specs = spec
    if node_type is None:
        return child_specs[0]
    children = [unflatten(part, tensors) for part in child_specs]
    if node_type is list:
        return children
    return node_type(**{f.name: part for f, part in zip(fields(node_type), children, strict=True)})
