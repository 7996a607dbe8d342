"""What layers give while a model runs (Zeiler and Fergus, arXiv:1311.2901, by forward hooks)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from data.io.messages import first_few
from models.hooks.attached_hooks import AttachedHooks, Hook
from models.hooks.layer_paths import find_layers, read_output


class LayerCollector(AttachedHooks):
    """Outputs of layers by path, inside a `with` block; what was collected stays until `clear`.

    One output is held for each path, of the first or of the last call since `clear`: nothing piles
    up however long a model runs.  Tensors are detached, unless the graph is to be kept.  Without
    gradients an output is held as it came, and its tensor is worked out only where it is asked for.

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
        self.model, self.detach, self.keep, self.with_grad = model, detach, keep, with_grad
        self.layers = find_layers(model, paths)
        self._held: dict[str, Any] = {}

    def hooks(self) -> Iterable[tuple[nn.Module, Hook]]:
        return [(module, _Collect(self, path)) for path, module in self.layers.items()]

    def __getitem__(self, path: str) -> Tensor:
        """What the layer gave; ValueError where it was not called."""
        if path not in self.layers:
            raise ValueError(f"{path!r} is not collected; there are {first_few(self.layers)}")
        if path not in self._held:
            raise ValueError(
                f"{path} has given nothing: its forward was not called since the collector was "
                f"attached or cleared; run the model within the `with` block, or collect the layer "
                f"around it"
            )
        self._held[path] = tensor = self._read(path)
        return tensor

    def clear(self) -> None:
        """Free what was collected; the next call of a layer is the first again."""
        self._held.clear()

    def take(self) -> dict[str, Tensor]:
        """Give what was collected, by path, and free it here."""
        taken = {path: self._read(path) for path in self._held}
        self.clear()
        return taken

    def _read(self, path: str) -> Tensor:
        held = self._held[path]
        tensor = held if isinstance(held, Tensor) else read_output(self.layers[path], held)
        return tensor.detach() if self.detach and tensor.requires_grad else tensor


class _Collect:
    """A class, not a closure: hooks are copied with the module."""

    def __init__(self, collector: LayerCollector, path: str) -> None:
        self.collector, self.path = collector, path

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> None:
        collector = self.collector
        held = collector._held
        if collector.keep == "first" and self.path in held:
            return
        if torch.is_grad_enabled():  # read at once: an output that is held would hold its graph
            tensor = read_output(module, output)
            held[self.path] = tensor.detach() if collector.detach else tensor
        elif not collector.with_grad:
            held[self.path] = output
