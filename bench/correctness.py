"""An operation held to its definition in float64 before any time is taken."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bench.pairs import Incorrect

Operation = Callable[..., Tensor | tuple[Tensor, ...]]

# units in the last place beyond what PyTorch itself is off, and never less than sums in float32
# differ by when they are added up in another order
TOLERANCE_ULPS, MIN_TOLERANCE = 8.0, 2e-6


def check_against_definition(
    name: str, operation: Operation, definition: Operation, inputs: Sequence[Tensor], grads: bool
) -> None:
    """Hold outputs, and with `grads` every input's gradient, to the definition in float64.

    They may be no further off than the definition in the inputs' own types, plus a hair.  Wrong
    says by how much.
    """
    exact = results(definition, [x.double() for x in inputs], grads)
    definition_results = results(definition, inputs, grads)
    operation_results = results(operation, inputs, grads)
    if not len(exact) == len(operation_results):
        raise Incorrect(
            f"{name} gives {len(operation_results)} results, the definition {len(exact)}"
        )
    dtype = max((x.dtype for x in inputs), key=lambda kind: torch.finfo(kind).eps)
    for number, (expected, own, seen) in enumerate(
        zip(exact, definition_results, operation_results, strict=True)
    ):
        hair = max(TOLERANCE_ULPS * torch.finfo(dtype).eps, MIN_TOLERANCE)
        slack = hair * expected.abs().max().clamp(min=1)
        limit = ((own.double() - expected).abs().max() + slack).item()
        worst = (seen.double() - expected).abs().max().item()
        if not worst <= limit:
            raise Incorrect(f"{name}: result {number} is {worst:.2g} off, {limit:.2g} is allowed")


def results(operation: Operation, inputs: Sequence[Tensor], grads: bool) -> list[Tensor]:
    """Floating outputs, then gradients of every input for an uneven gradient from above."""
    inputs = [x.detach().clone().requires_grad_(grads) for x in inputs]
    found = floating(operation(*inputs))
    if not grads:
        return found
    grad_outputs = [
        torch.linspace(-1, 2, y.numel(), device=y.device).view(y.shape).to(y) for y in found
    ]
    return [y.detach() for y in found] + list(torch.autograd.grad(found, inputs, grad_outputs))


def floating(found: Tensor | tuple[Tensor, ...]) -> list[Tensor]:
    """The outputs that gradients flow through."""
    outputs = [found] if isinstance(found, Tensor) else list(found)
    return [y for y in outputs if y.is_floating_point()]


def check_codes(name: str, codes: Tensor, vectors: Tensor, codebook: Tensor) -> None:
    """Hold codes to the nearest rows of the book in float64, but for ties in float32."""
    vectors, codebook = vectors[:4096].double(), codebook.double()
    distances = codebook.square().sum(-1) - 2 * vectors @ codebook.T
    chosen = distances.gather(1, codes[:4096, None].long())[:, 0]
    worst = ((chosen - distances.min(1).values).max() / distances.abs().max()).item()
    # a unit for each of the sums' sixteenths, and one for the last difference
    limit = (4 + codebook.shape[1] / 16) * torch.finfo(torch.float32).eps
    if not worst <= limit:
        raise Incorrect(
            f"{name}: a code is {worst:.2g} further than the nearest, {limit:.2g} allowed"
        )
