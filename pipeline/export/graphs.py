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
from models.frame_residual import expand_patches
from models.world import World

LEAST_CAST = 1024  # numbers of a weight that is worth casting
OPSET = 20
UNCHANGED = "unchanged"
"""Of what is remembered: the share of a patch's codes that are as in the first frame, last of all.
"""


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


class StepOfCodes(Step):
    """The same, also with the codes' vectors, and the patches that are as in the first frame."""

    def __init__(self, world: World, names: tuple[str, ...]) -> None:
        super().__init__(world, tuple(name for name in names if name != UNCHANGED))
        self.vectors, self.num_patches = world.code_vectors, world.latents.num_patches

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        *packed, unchanged, action = inputs
        latents, reward, *after = super().forward(*packed, action)
        before = packed[self.names.index("codes")]
        changed = (latents != before).unflatten(1, (self.num_patches, -1)).float().mean(-1)
        return latents, reward, self.vectors(latents), *after, unchanged * (1 - changed)


class Encode(nn.Module):
    def __init__(self, world: World) -> None:
        super().__init__()
        self.tokenizer, self.vectors = world.tokenizer, world.code_vectors
        self.has_codes = world.latents.kind == "discrete"

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        latents = self.tokenizer.encode(*inputs)
        return (latents, self.vectors(latents)) if self.has_codes else latents


class Decode(nn.Module):
    def __init__(self, world: World) -> None:
        super().__init__()
        self.tokenizer = world.tokenizer

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.tokenizer.decode(*inputs)


class DecodeCodes(Decode):
    """Codes, the patches that are as in the first frame, and what codes lose of that one."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.grid, (height, width) = world.latents.grid, world.image_size
        self.patch = (height // self.grid[0], width // self.grid[1])

    def forward(self, *inputs: Tensor) -> Tensor:
        codes, unchanged, residual = inputs
        frames = super().forward(codes).float()
        frames = frames + residual * expand_patches(unchanged, self.grid, self.patch)
        return frames.round().clamp(0, 255).byte()


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
    if latents.kind == "discrete":
        step, found = StepOfCodes(world, names), ("latents", "vectors")
        decode, drawn = DecodeCodes(world), ("latents", UNCHANGED, "residual")
        examples = (packed["codes"], packed[UNCHANGED], torch.zeros(1, 3, *world.image_size))
    else:
        step, found = Step(world, names), ("latents",)
        decode, drawn, examples = Decode(world), ("latents",), (vectors[:1],)
    told = ("latents", "reward", *found[1:], *after)
    graphs = [
        Graph("step", step, (*state, action), (*names, "action"), told),
        Graph("decode", decode, examples, drawn, ("frame",), any_rows=False),
        Graph("encode", Encode(world), (frame,), ("frame",), found, any_rows=False),
    ]
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
        try:
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
        except torch.onnx.OnnxExporterError as problem:
            raise ValueError(
                f"the {graph.name} of this world is nothing that ONNX can express "
                f"({type(problem).__name__}); play.py --browser plays it from a server"
            ) from problem
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
