"""How much memory a training of dynamics needs, before any of it is taken.

The model is built without its numbers, and its loss is followed once on tensors that are nothing
but shapes: what autograd keeps for the backward pass is added up.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from data.batch import Batch
from models.dynamics.dynamics import Dynamics
from models.layers.precision import Precision, autocast
from models.registry import DataSpec, MethodConfig, build_dynamics


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of a training, part by part."""

    weights: int
    gradients: int
    moments: int
    """AdamW's two."""
    ema: int
    activations: int
    """What the forward pass keeps for the backward pass; with activation checkpointing also a
    layer's own, which is computed again."""

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.moments + self.ema + self.activations

    def describe(self) -> str:
        """A line to print."""
        parts = [f"{name} {size / 2**30:.2f}" for name, size in vars(self).items()]
        return f"{self.total / 2**30:.2f} GiB: {', '.join(parts)}"


def estimate_memory(
    config: MethodConfig, data: DataSpec, batch_size: int, precision: Precision = "bf16"
) -> MemoryEstimate:
    """Predict what a step of dynamics needs; batch_size: clips of a micro-batch.

    Buffers of single operations, and the allocator's own, come on top.
    """
    model = _shapes_of(config, data)
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    activations = _kept(model, data, batch_size, precision)
    transformer = getattr(config, "transformer", None)
    if transformer is not None and transformer.activation_checkpointing:
        plain: Any = replace(
            config,
            transformer=replace(transformer, activation_checkpointing=False),  # type: ignore[type-var]
        )
        whole = _kept(_shapes_of(plain, data), data, batch_size, precision)
        activations += (whole - activations) // len(model.fsdp_units())
    return MemoryEstimate(weights, trained, 2 * trained, trained, activations)


def _shapes_of(config: MethodConfig, data: DataSpec) -> Dynamics:
    with torch.device("meta"):
        return build_dynamics(config, data).train()


def _kept(model: Dynamics, data: DataSpec, batch_size: int, precision: Precision) -> int:
    """Bytes that autograd keeps of a forward pass, other than weights: each piece of memory once.

    Copies of weights in 16 bits, which autocast makes, are among them.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    found: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        found[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with FakeTensorMode():  # tensors of the CPU, for autocast, that hold no numbers
        for module in model.modules():
            for name, weight in module._parameters.items():
                if weight is not None:
                    empty = torch.empty(weight.shape, dtype=weight.dtype)
                    module._parameters[name] = nn.Parameter(empty, weight.requires_grad)
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
        own = {t.untyped_storage()._cdata for t in [*model.parameters(), *model.buffers()]}
        with (
            torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
            autocast(torch.device("cpu"), precision),
        ):
            model.loss(_batch(model, data, batch_size))
        return sum(t.untyped_storage().nbytes() for key, t in found.items() if key not in own)


def _batch(model: Dynamics, data: DataSpec, batch_size: int) -> Batch:
    assert data.latents is not None
    clips = (batch_size, model.clip_length)
    codes = data.actions.kind == "discrete"
    return Batch(
        latents=torch.empty(*clips, data.latents.num_patches, data.latents.dim),
        actions=torch.empty(*clips, *data.actions.shape, dtype=torch.int64 if codes else None),
        rewards=torch.empty(clips) if model.has_rewards else None,
        continues=torch.empty(clips) if model.has_rewards else None,
    )
