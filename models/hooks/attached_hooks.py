"""Forward hooks on layers that are there within a `with` block."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, ClassVar, Self

from torch import nn
from torch.utils.hooks import RemovableHandle

Hook = Callable[[nn.Module, Any, Any], Any]


class AttachedHooks(ABC):
    """What attaches hooks when its block begins, and takes them off when it ends."""

    noun: ClassVar[str]
    """What an error calls it."""

    def __init__(self) -> None:
        self._handles: list[RemovableHandle] = []

    @abstractmethod
    def hooks(self) -> Iterable[tuple[nn.Module, Hook]]:
        """The hook of each layer."""

    def __enter__(self) -> Self:
        if self._handles:
            raise ValueError(
                f"this {self.noun} is attached already; leave its `with` block, or make another"
            )
        self._handles = [module.register_forward_hook(hook) for module, hook in self.hooks()]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
