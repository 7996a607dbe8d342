"""Tensors inside lists, tuples and dataclasses, and what holds them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor

Form = str | tuple[Any, ...]

_TENSOR = "tensor"


def taken_apart(value: Any, tensors: list[Tensor]) -> Form:
    """The form of nested dataclasses, lists and tuples; their tensors go to the end of a list."""
    if isinstance(value, Tensor):
        tensors.append(value)
        return _TENSOR
    if isinstance(value, (list, tuple)):
        return (list, *[taken_apart(part, tensors) for part in value])
    if is_dataclass(value) and not isinstance(value, type):
        parts = [taken_apart(getattr(value, f.name), tensors) for f in fields(value)]
        return (type(value), *parts)
    return (None, value)


def put_together(form: Form, tensors: Iterator[Tensor]) -> Any:
    """What `taken_apart` took apart, with other tensors; tuples come back as lists."""
    if isinstance(form, str):
        return next(tensors)
    kind, *inside = form
    if kind is None:
        return inside[0]
    parts = [put_together(part, tensors) for part in inside]
    if kind is list:
        return parts
    return kind(**{f.name: part for f, part in zip(fields(kind), parts, strict=True)})
