"""The parts of a world as ONNX graphs, for runtimes outside of Python.

Each graph is one file; its larger weights are stored in 16 bits, and cast when it is loaded.
"""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from models.controllers.goal_policy import GoalPolicy
from models.world import World

LEAST_CAST = 1024  # numbers of a weight that is worth casting
OPSET = 20


@dataclass(frozen=True)
class Graph:
    name: str
    module: nn.Module
    examples: tuple[Tensor, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    any_rows: bool = True
    """Takes any number of rows; else those of the examples."""


class Step(nn.Module):
    """What is remembered and an action in [-1, 1], or a code, to what comes after."""

    def __init__(self, world: World, names: tuple[str, ...]) -> None:
        super().__init__()
        self.dynamics, self.names = world.dynamics, names

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        *packed, action = inputs
        given = dict(zip(self.names, packed, strict=True))
        latents, reward, after = self.dynamics.step_packed(given, action)
        return latents, reward, *(after[name] for name in self.names)


class Encode(nn.Module):
    def __init__(self, world: World) -> None:
        super().__init__()
        self.tokenizer = world.tokenizer

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.tokenizer.encode(*inputs)


class Decode(Encode):
    def forward(self, *inputs: Tensor) -> Tensor:
        return self.tokenizer.decode(*inputs)


class Policy(nn.Module):
    def __init__(self, policy: GoalPolicy) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.policy(*inputs)


def world_graphs(world: World, policy: GoalPolicy | None, packed: dict[str, Tensor]) -> list[Graph]:
    """The graphs of a page.  packed: of a state of one row, as `Dynamics.pack` gives it."""
    names, rows = tuple(packed), 2  # one row would be taken for the only number
    spec, latents = world.actions, world.latents
    frame = torch.zeros(1, 3, *world.image_size, dtype=torch.uint8)
    vectors = torch.zeros(rows, latents.num_patches, latents.dim)
    action = spec.empty(rows, 1)[:, 0]
    state = tuple(tensor.repeat_interleave(rows, 0) for tensor in packed.values())
    after = tuple(f"next_{name}" for name in names)
    graphs = [
        Graph("step", Step(world, names), (*state, action), (*names, "action"),
              ("latents", "reward", *after)),
        Graph("decode", Decode(world), (vectors[:1],), ("latents",), ("frame",), any_rows=False),
        Graph("encode", Encode(world), (frame,), ("frame",), ("latents",), any_rows=False),
    ]  # fmt: skip
    if policy is not None:
        inputs = ("latents", "goal", "last_action")
        # not one tensor twice: it would be traced as one input
        examples = (vectors, vectors.clone(), action)
        graphs.append(Graph("policy", Policy(policy), examples, inputs, ("knot",)))
    return graphs


def to_onnx(graph: Graph, half: bool) -> bytes:
    """Trace a graph, and store its weights in 16 bits where `half`."""
    rows = {0: torch.export.Dim("rows", min=1, max=2**16)} if graph.any_rows else None
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it names packages that are not there
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            graph.module.eval(),
            graph.examples,
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            opset_version=OPSET,
            dynamic_shapes={"inputs": (rows,) * len(graph.examples)},
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    if half:
        _store_half(model)
    return model.SerializeToString()


def _store_half(model: Any) -> None:
    """Replace large float32 weights by float16 ones and a Cast, in place."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper  # type: ignore[import-not-found]

    casts = []
    for weight in model.graph.initializer:
        if weight.data_type != TensorProto.FLOAT or np.prod(weight.dims) < LEAST_CAST:
            continue
        name = weight.name
        half = numpy_helper.to_array(weight).astype(np.float16)
        if not np.isfinite(half).all():
            raise ValueError(f"the weight {name} is beyond the range of 16 bits; give --dtype fp32")
        weight.CopyFrom(numpy_helper.from_array(half, f"{name}.half"))
        casts.append(helper.make_node("Cast", [f"{name}.half"], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    for listed in list(model.graph.value_info):
        if any(listed.name == cast.output[0] for cast in casts):
            model.graph.value_info.remove(listed)
