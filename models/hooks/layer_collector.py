"""What layers give while a model runs (Zeiler and Fergus, arXiv:1311.2901, by forward hooks)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from data.io.messages import first_few
from models.hooks.attached_hooks import AttachedHooks, Hook
from models.hooks.layer_paths import GivesSum, find_layers, read_output


class _Held(NamedTuple):
    output: Any
    """A tensor; what a layer that gives a sum returned; or, as text, why it cannot be read."""
    version: int | None = None
    """How often the tensor had been changed in place; None where nobody counts."""
    has_graph: bool = False


class LayerCollector(AttachedHooks):
    """Outputs of layers by path, inside a `with` block; what was collected stays until `clear`.

    One output is held for each path, of the first or of the last call since `clear`: nothing piles
    up however long a model runs.  Tensors are detached, unless the graph is to be kept: then the
    first call is the first with gradients, where there is one.  Without gradients an output is held
    as it came, and what is a sum is added up only where it is asked for.  An output that a later
    layer changes in place is an error when it is read; under `inference_mode` it is copied.

        with LayerCollector(world.dynamics, ["transformer.layers.2"]) as layers:
            world.step(state, action)
            layers["transformer.layers.2"]
    """

    noun = "collector"

    def __init__(
        self,
        model: nn.Module,
        paths: Iterable[str],
        detach: bool = True,
        keep: Literal["first", "last"] = "last",
        with_grad: bool = False,
    ) -> None:
        """paths: as `find_layers` takes them.  with_grad: leave calls under `no_grad` aside.
        ValueError for a path that there is not."""
        super().__init__()
        if keep not in ("first", "last"):
            raise ValueError(f"keep is {keep!r}; a collector keeps the 'first' call or the 'last'")
        self.model, self.detach, self.keep, self.with_grad = model, detach, keep, with_grad
        self.layers = find_layers(model, paths)
        self._held: dict[str, _Held] = {}

    def hooks(self) -> Iterable[tuple[nn.Module, Hook]]:
        return [(module, _Collect(self, path)) for path, module in self.layers.items()]

    def __getitem__(self, path: str) -> Tensor:
        """What the layer gave; ValueError where it was not called, or it cannot be read."""
        if path not in self.layers:
            raise ValueError(f"{path!r} is not collected; there are {first_few(self.layers)}")
        if path not in self._held:
            raise ValueError(
                f"{path} has given nothing: its forward was not called since the collector was "
                f"attached or cleared; run the model within the `with` block, or collect the layer "
                f"around it"
            )
        tensor = self._read(path)
        if not isinstance(self._held[path].output, Tensor):
            self._held[path] = _Held(tensor)
        return tensor

    def clear(self) -> None:
        """Free what was collected; the next call of a layer is the first again."""
        self._held.clear()

    def take(self) -> dict[str, Tensor]:
        """Give what was collected, by path, and free it here.  ValueError where one output cannot
        be read: nothing is freed then, and the others can be read one by one."""
        taken = {path: self._read(path) for path in self._held}
        self.clear()
        return taken

    def _read(self, path: str) -> Tensor:
        output, version, _ = self._held[path]
        if isinstance(output, str):
            raise ValueError(f"{path} cannot be read: {output}")
        if version is not None and output._version != version:
            raise ValueError(
                f"{path}'s output was changed in place by a later layer (as by "
                f"ReLU(inplace=True)); build that layer without inplace, or collect it instead"
            )
        tensor = output if isinstance(output, Tensor) else read_output(self.layers[path], output)
        return tensor.detach() if self.detach and tensor.requires_grad else tensor


class _Collect:
    """A class, not a closure: hooks are copied with the module."""

    def __init__(self, collector: LayerCollector, path: str) -> None:
        self.collector, self.path = collector, path
        self.gives_sum = isinstance(collector.layers[path], GivesSum)

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> None:
        collector, path = self.collector, self.path
        held, has_grad = collector._held, torch.is_grad_enabled()
        is_first = path not in held or (
            has_grad and not collector.detach and not held[path].has_graph
        )
        if (collector.keep == "first" and not is_first) or (collector.with_grad and not has_grad):
            return
        if self.gives_sum and not has_grad:
            held[path] = _Held(output)
            return
        try:  # at once: an output that is held would hold its graph
            tensor = read_output(module, output)
        except ValueError as problem:
            held[path] = _Held(str(problem))
            return
        held[path] = _hold(tensor.detach() if collector.detach else tensor, has_grad)


def _hold(tensor: Tensor, has_graph: bool = False) -> _Held:
    if tensor.is_inference():  # nobody counts how often it is changed
        return _Held(tensor.clone())
    return _Held(tensor, tensor._version, has_graph)
