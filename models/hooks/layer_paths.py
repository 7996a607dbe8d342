"""Layers of a model by their paths, such as `transformer.layers.2`, and the tensor that each gives.

A path is what `named_modules()` calls a module; `*` in it stands for any one part.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import fields, is_dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from data.io.messages import first_few


@runtime_checkable
class GivesSum(Protocol):
    """A layer whose output is a sum that is left to the next one to add up, not in place."""

    def read_output(self, output: Any) -> Tensor:
        """What the layer gives, (..., D), of what its `forward` returned."""
        ...

    def with_output(self, output: Any, tensor: Tensor) -> Any:
        """What its `forward` returned, with `tensor` in place of what it gives."""
        ...


def find_layers(model: nn.Module, paths: Iterable[str]) -> dict[str, nn.Module]:
    """Give the modules at `paths`, in the model's order; ValueError names what is near a path that
    there is not, or that hooks cannot read because the model is compiled."""
    known = {name: module for name, module in model.named_modules() if name}
    wanted = [paths] if isinstance(paths, str) else list(paths)
    found: set[str] = set()
    for path in wanted:
        matches = [name for name in known if _matches(name, path)]
        if not matches:
            near = difflib.get_close_matches(path, known, n=3, cutoff=0.5)
            there = [name for name in known if name.count(".") == 0]
            hint = f"did you mean {' or '.join(near)}?" if near else f"it has {first_few(there)}"
            raise ValueError(f"{type(model).__name__} has no layer {path!r}; {hint}")
        found.update(matches)
    if compiled := compiled_part(model):
        raise ValueError(
            f"{compiled} is compiled, and compiled code ignores hooks that come after it; attach "
            f"them to a model that is not compiled (load it again, --train.compile no)"
        )
    return {name: module for name, module in known.items() if name in found}


def _matches(name: str, pattern: str) -> bool:
    parts, wanted = name.split("."), pattern.split(".")
    return len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))


def compiled_part(model: nn.Module) -> str | None:
    """Name a compiled part: a module, or a method that a compiled one has replaced."""
    for name, module in model.named_modules():
        name = name or type(module).__name__
        if module._compiled_call_impl is not None or hasattr(module, "_orig_mod"):
            return name
        for key, value in vars(module).items():
            if callable(value) and callable(getattr(type(module), key, None)):
                return f"{name}.{key}"
    return None


def read_output(module: nn.Module, output: Any) -> Tensor:
    """The tensor that a layer gives: its output, or the first tensor of a tuple or an output class
    of transformers.  ValueError where there is none."""
    if isinstance(module, GivesSum):
        return module.read_output(output)
    if isinstance(output, Tensor):
        return output
    for value in _parts(output):
        if isinstance(value, Tensor):
            return value
    raise ValueError(f"{type(module).__name__} gives a {type(output).__name__} without a tensor")


def with_output(module: nn.Module, output: Any, tensor: Tensor) -> Any:
    """A layer's output with `tensor` in place of the one that `read_output` gives."""
    if isinstance(module, GivesSum):
        return module.with_output(output, tensor)
    if isinstance(output, Tensor):
        return tensor
    if is_dataclass(output):  # of transformers
        assert not isinstance(output, type)
        name = next(f.name for f in fields(output) if isinstance(getattr(output, f.name), Tensor))
        return replace(output, **{name: tensor})
    index = next(i for i, value in enumerate(output) if isinstance(value, Tensor))
    changed = (*output[:index], tensor, *output[index + 1 :])
    return type(output)(*changed) if hasattr(output, "_fields") else type(output)(changed)


def _parts(output: Any) -> Iterable[Any]:
    if is_dataclass(output):
        return [getattr(output, f.name) for f in fields(output)]
    return output if isinstance(output, tuple | list) else ()
