"""Change what layers give while a model runs: steer it along a direction, or ablate a head
(activation addition, arXiv:2308.10248; head ablation, arXiv:1905.10650).

Letters: B rows, S tokens, D width, H heads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from data.io.messages import first_few
from models.hooks.attached_hooks import AttachedHooks, Hook
from models.hooks.layer_paths import find_layers, read_output, with_output

Change = Callable[[Tensor], Tensor]
"""What a layer gives, to what it shall give instead, of the same shape."""


class LayerManipulator(AttachedHooks):
    """Named processors, each of the output of a layer, inside a `with` block: in training, in
    evaluation and in play.

        steer = LayerManipulator(world.dynamics, {"left": ("transformer.layers.1", change)})
        with steer:
            world.step(state, action)
            with steer.only():    # none of them
                world.step(state, action)
    """

    noun = "manipulator"

    def __init__(self, model: nn.Module, processors: Mapping[str, tuple[str, Change]]) -> None:
        """processors: by name, the layer's path and the change.  All are active at first."""
        super().__init__()
        self.model, self.processors = model, dict(processors)
        self.layers = {
            name: find_layers(model, [path]) for name, (path, _) in self.processors.items()
        }
        self.active = set(self.processors)
        self.called: set[str] = set()
        """Processors whose layer was called since the block began."""

    @contextmanager
    def only(self, *names: str) -> Iterator[None]:
        """Let these alone be active inside a `with` block; ValueError for a name of none."""
        if unknown := [name for name in names if name not in self.processors]:
            raise ValueError(f"no processor {unknown[0]!r}; there are {first_few(self.processors)}")
        before, self.active = self.active, set(names)
        try:
            yield
        finally:
            self.active = before

    def hooks(self) -> Iterable[tuple[nn.Module, Hook]]:
        self.called.clear()
        return [
            (module, _Change(self, name))
            for name, modules in self.layers.items()
            for module in modules.values()
        ]

    def __exit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        super().__exit__(kind, problem, trace)
        for name in sorted(self.active - self.called) if kind is None else ():
            path = self.processors[name][0]
            print(f"processor {name!r} changed nothing: {path} was not called")


class _Change:
    """A class, not a closure: hooks are copied with the module."""

    def __init__(self, manipulator: LayerManipulator, name: str) -> None:
        self.manipulator, self.name = manipulator, name

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        self.manipulator.called.add(self.name)
        if self.name not in self.manipulator.active:
            return None
        before = read_output(module, output)
        path, change = self.manipulator.processors[self.name]
        after = change(before)
        if not isinstance(after, Tensor):
            raise ValueError(
                f"processor {self.name!r} makes a {type(after).__name__} of the "
                f"{tuple(before.shape)} that {path} gives; return a tensor of that shape"
            )
        if after.shape != before.shape:
            raise ValueError(
                f"processor {self.name!r} makes {tuple(after.shape)} of the {tuple(before.shape)} "
                f"that {path} gives; keep the shape"
            )
        return with_output(module, output, after.to(before.dtype))


@dataclass(frozen=True)
class AddDirection:
    """Add `dose` times a direction, (D,), to every token: (B, S, D) -> the same."""

    direction: Tensor
    dose: float | Tensor = 1.0
    """A number, or one for each row, (B,)."""

    def __call__(self, x: Tensor) -> Tensor:
        dose = torch.as_tensor(self.dose, device=x.device, dtype=torch.float32)
        dose = dose.view(-1, *[1] * (x.dim() - 1)) if dose.dim() else dose
        return x + dose * self.direction.to(x.device)


@dataclass(frozen=True)
class AblateHeads:
    """Let attention heads give nothing, at a layer that gives queries, keys and values packed:
    (B, S, 3 D) -> the same, with zeros for the values of `heads`."""

    num_heads: int
    heads: tuple[int, ...]

    def __call__(self, x: Tensor) -> Tensor:
        packed = x.unflatten(-1, (3, self.num_heads, -1)).clone()
        packed[..., 2, list(self.heads), :] = 0
        return packed.flatten(-3)
