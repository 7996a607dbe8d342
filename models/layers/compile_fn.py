"""How a model that learns no more says what of it to compile, and leaves open by what."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from torch import nn


class CompileFn(Protocol):
    def __call__(self, module: nn.Module, function: Callable[..., Any]) -> Callable[..., Any]:
        """Give a faster function that does the same as `function`, a method of `module`."""
        ...
