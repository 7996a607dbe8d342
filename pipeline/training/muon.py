"""Muon for the weights of layers, AdamW for the rest (Jordan, kellerjordan.github.io/posts/muon;
step sizes as in Liu et al., arXiv:2502.16982, equation 4).

The step of a matrix is its momentum, made orthogonal: all directions move by as much.  Each
matrix costs some products of its own size, so it pays where a step has many rows for each of
them: convolutions and long sequences.

PyTorch's Muon takes no convolutions, and computes in bf16 whatever a training does, which older
CPUs do not have.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from models.layers.precision import Precision

MOMENTUM = 0.95
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic; singular values end in 0.7 to 1.2
ITERATIONS = 5
UPDATE_RMS = 0.2  # as AdamW's steps have, so that learning rates carry over
MIN_SIDE = 16  # of a matrix; a thinner one has few directions to even out


def muon_for(
    model: nn.Module, is_sharded: bool, precision: Precision, flag_prefix: str
) -> Callable[..., Muon]:
    """Return what makes the optimizer of a model from its groups of weights and AdamW's settings.

    In a training in bf16 matrices are made orthogonal in bf16, too: none needs to be so exactly.
    The range of fp16 is too small for that.  ValueError for a model whose weights are spread over
    processes.
    """
    if is_sharded:
        raise ValueError(
            f"--{flag_prefix}.optimizer muon needs whole matrices, which --{flag_prefix}.sharding "
            f"fsdp spreads over the processes; leave that out, or give --{flag_prefix}.optimizer "
            f"adamw"
        )
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    return partial(Muon, matrices=layer_weights(model), dtype=dtype)


def layer_weights(model: nn.Module) -> list[Tensor]:
    """The weights of linear and convolutional layers that Muon can make orthogonal."""
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    weights = [layer.weight for layer in model.modules() if isinstance(layer, kinds)]
    return [w for w in weights if w.requires_grad and min(w.flatten(1).shape) >= MIN_SIDE]


class Muon(torch.optim.AdamW):
    """AdamW, but for `matrices`, whose rows are their first axis."""

    def __init__(
        self,
        params: Any,
        matrices: Iterable[Tensor],
        dtype: torch.dtype = torch.float32,
        **adamw: Any,
    ) -> None:
        """dtype: of the products that make matrices orthogonal."""
        super().__init__(params, **adamw)
        self._dtype = dtype
        self._matrices = {id(weight) for weight in matrices}
        # or a gradient scaler would leave it to the step to skip what has overflown
        self._step_supports_amp_scaling = False

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for weight in group["params"]:
                if id(weight) in self._matrices and weight.grad is not None:
                    by_shape[weight.flatten(1).shape].append(weight)
            for shape, weights in by_shape.items():
                averages = torch.stack([self._average(weight) for weight in weights])
                updates = orthogonal(averages, self._dtype)
                step_size = group["lr"] * UPDATE_RMS * max(shape) ** 0.5
                for weight, update in zip(weights, updates, strict=True):
                    weight.mul_(1 - group["lr"] * group["weight_decay"])
                    weight.sub_(update.view(weight.shape) * step_size)
                    weight.grad = None  # AdamW leaves it as it is
        return super().step(closure)

    def _average(self, weight: Tensor) -> Tensor:
        """Nesterov momentum of a weight's gradient, as a matrix."""
        assert weight.grad is not None
        state = self.state[weight]
        if not state:
            # AdamW looks for the count in whatever state is loaded
            state["step"] = torch.zeros(())
            state["momentum"] = torch.zeros_like(weight)
        state["step"] += 1
        momentum = state["momentum"].mul_(MOMENTUM).add_(weight.grad)
        # without a gradient it stands still: momentum that fades would be as long a step as ever
        is_learning = weight.grad.any()
        return weight.grad.add(momentum, alpha=MOMENTUM).flatten(1) * is_learning


def orthogonal(matrices: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """(N, rows, columns) -> the same, with singular values near 1 (Newton-Schulz iterations)."""
    a, b, c = COEFFICIENTS
    x = (matrices / (matrices.norm(dim=(-2, -1), keepdim=True) + 1e-7)).to(dtype)
    is_tall = x.shape[-2] > x.shape[-1]
    if is_tall:
        x = x.mT
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if is_tall else x).to(matrices.dtype)
