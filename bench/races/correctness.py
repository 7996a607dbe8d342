"""Check an operation against its definition in float64, before it is timed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bench.races.pairs import Incorrect

Operation = Callable[..., Tensor | tuple[Tensor, ...]]

# units in the last place beyond PyTorch's own error, and at least what float32 sums in another
# order differ by
TOLERANCE_ULPS, MIN_TOLERANCE = 8.0, 2e-6


def check_against_definition(
    name: str, operation: Operation, definition: Operation, inputs: Sequence[Tensor], grads: bool
) -> None:
    """Check outputs, and with `grads` every input's gradient, against the definition in float64.

    Raises Incorrect if the error exceeds that of the definition in the inputs' own dtypes, plus a
    small tolerance.
    """
    exact = results(definition, [x.double() for x in inputs], grads)
    definition_results = results(definition, inputs, grads)
    operation_results = results(operation, inputs, grads)
    if not len(exact) == len(operation_results):
        raise Incorrect(
            f"{name} returns {len(operation_results)} results, the definition {len(exact)}"
        )
    dtype = max((x.dtype for x in inputs), key=lambda dtype: torch.finfo(dtype).eps)
    for number, (expected, own, actual) in enumerate(
        zip(exact, definition_results, operation_results, strict=True)
    ):
        tolerance = max(TOLERANCE_ULPS * torch.finfo(dtype).eps, MIN_TOLERANCE)
        slack = tolerance * expected.abs().max().clamp(min=1)
        limit = ((own.double() - expected).abs().max() + slack).item()
        worst = (actual.double() - expected).abs().max().item()
        if not worst <= limit:
            raise Incorrect(f"{name}: result {number} is {worst:.2g} off, {limit:.2g} is allowed")


def results(operation: Operation, inputs: Sequence[Tensor], grads: bool) -> list[Tensor]:
    """Return floating outputs, then every input's gradient for an uneven output gradient."""
    inputs = [x.detach().clone().requires_grad_(grads) for x in inputs]
    found = floating(operation(*inputs))
    if not grads:
        return found
    grad_outputs = [
        torch.linspace(-1, 2, y.numel(), device=y.device).view(y.shape).to(y) for y in found
    ]
    return [y.detach() for y in found] + list(torch.autograd.grad(found, inputs, grad_outputs))


def floating(found: Tensor | tuple[Tensor, ...]) -> list[Tensor]:
    """Return the outputs that gradients flow through."""
    outputs = [found] if isinstance(found, Tensor) else list(found)
    return [y for y in outputs if y.is_floating_point()]


def check_codes(name: str, codes: Tensor, vectors: Tensor, codebook: Tensor) -> None:
    """Check codes against the nearest rows of the codebook in float64, up to ties in float32."""
    vectors, codebook = vectors[:4096].double(), codebook.double()
    distances = codebook.square().sum(-1) - 2 * vectors @ codebook.T
    chosen = distances.gather(1, codes[:4096, None].long())[:, 0]
    worst = ((chosen - distances.min(1).values).max() / distances.abs().max()).item()
    # a rounding for every sixteen terms of a sum, and some for the differences
    limit = (4 + codebook.shape[1] / 16) * torch.finfo(torch.float32).eps
    if not worst <= limit:
        raise Incorrect(
            f"{name}: a code is {worst:.2g} further than the nearest, {limit:.2g} allowed"
        )
