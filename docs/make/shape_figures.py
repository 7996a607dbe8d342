"""Draw the data flow of every method of the registry, with the shapes of a real pass.

Each method is built as its recipe and size say, takes a batch of B rows of random frames and
actions, and its layers are read while it runs.  docs/make/method_flows.py says what is drawn.

Reads   the recipes and the methods.
Writes  docs/images/method-NAME.svg for each name of the registry.
Try     python docs/make/shape_figures.py
        python docs/make/shape_figures.py vqvae rssm
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

import train_controller  # noqa: E402
import train_dynamics  # noqa: E402
import train_tokenizer  # noqa: E402
from data.actions import ActionSpec  # noqa: E402
from data.pusht.simulator import ACTIONS  # noqa: E402
from models import registry  # noqa: E402
from models.hooks.layer_collector import LayerCollector  # noqa: E402
from models.registry import DataSpec  # noqa: E402
from pipeline import presets  # noqa: E402

ROWS = 2
"""Of a batch: what has this length is shown as B."""


@dataclass
class Traced:
    """A method after a pass, and the shapes that its layers gave."""

    model: Any
    given: dict[str, Tensor]

    def shape(self, path: str | Tensor) -> str:
        """Of a layer's output, or of a tensor: (B, 1, 64)."""
        tensor = self.given[path] if isinstance(path, str) else path
        sizes = ["B" if at == 0 else str(n) for at, n in enumerate(tensor.shape)]
        kind = {torch.uint8: " uint8", torch.int64: " codes"}.get(tensor.dtype, "")
        return f"({', '.join(sizes)}){kind}"

    def weights(self, *paths: str) -> str:
        """How many weights a part has: 0.31 M."""
        parts: list[nn.Module] = [self.model.get_submodule(path) for path in paths]
        count = sum(weight.numel() for part in parts for weight in part.parameters())
        return f"{count / 1e6:.2f} M" if count >= 5000 else f"{count:,}"


def trace(model: nn.Module, layers: list[str], run: Callable[[], Any]) -> tuple[Traced, Any]:
    """Run a model, and read its layers."""
    model.eval()
    with torch.no_grad(), LayerCollector(model, layers, keep="first") as found:
        answer = run()
        return Traced(model, {layer: found[layer] for layer in layers}), answer


STAGES = {
    "tokenizer": train_tokenizer.Config,
    "dynamics": train_dynamics.Config,
    "controller": train_controller.Config,
}


def settings(stage: str, preset: str) -> Any:
    """The config of a stage under presets."""
    return presets.apply(STAGES[stage](), stage, preset.split())


def tokenizer(preset: str, **changes: Any) -> Any:
    """Build the tokenizer of a recipe for Push-T."""
    config = replace(settings("tokenizer", preset).model, **changes)
    return registry.build_tokenizer(config, DataSpec((64, 64), ACTIONS))


def dynamics(preset: str, actions: ActionSpec = ACTIONS) -> tuple[Any, Any]:
    """Build the tokenizer and the dynamics of a recipe; of one model for both, that twice."""
    config = settings("dynamics", preset).model
    if not registry.reads_latents(registry.describe(config)):
        model = registry.build_dynamics(config, DataSpec((64, 64), actions))
        return model, model
    below = tokenizer(preset)
    data = DataSpec((64, 64), actions, below.latents)
    return below, registry.build_dynamics(config, data)


def frames(*shape: int) -> Tensor:
    """(B, ..., 3, 64, 64) uint8."""
    return torch.randint(256, (ROWS, *shape, 3, 64, 64), dtype=torch.uint8)


def actions(*shape: int) -> Tensor:
    """(B, ..., 2) of Push-T, normalized."""
    return torch.rand(ROWS, *shape, 2) * 2 - 1


def names() -> Iterator[str]:
    """All methods of the registry."""
    yield from registry.TOKENIZERS | registry.DYNAMICS | registry.CONTROLLERS


def main(chosen: list[str]) -> None:
    from method_flows import FLOWS

    torch.manual_seed(0)
    for name in chosen or names():
        FLOWS[name]().draw(f"method-{name}.svg")


if __name__ == "__main__":
    main(sys.argv[1:])
