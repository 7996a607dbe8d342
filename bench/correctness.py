"""An operation held to its definition in float64 before any time is taken."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bench.pairs import Wrong

Operation = Callable[..., Tensor | tuple[Tensor, ...]]

# units in the last place beyond what PyTorch itself is off, and never less than sums in float32
# differ by when they are added up in another order
HAIR, LEAST = 8.0, 2e-6


def check_near(
    name: str, operation: Operation, definition: Operation, inputs: Sequence[Tensor], grads: bool
) -> None:
    """Hold outputs, and with `grads` every input's gradient, to the definition in float64.

    They may be no further off than the definition in the inputs' own types, plus a hair.  Wrong
    says by how much.
    """
    truth = results(definition, [x.double() for x in inputs], grads)
    usual = results(definition, inputs, grads)
    mine = results(operation, inputs, grads)
    if not len(truth) == len(mine):
        raise Wrong(f"{name} gives {len(mine)} results, the definition {len(truth)}")
    kind = max((x.dtype for x in inputs), key=lambda kind: torch.finfo(kind).eps)
    for number, (exact, own, seen) in enumerate(zip(truth, usual, mine, strict=True)):
        hair = max(HAIR * torch.finfo(kind).eps, LEAST)
        slack = hair * exact.abs().max().clamp(min=1)
        limit = ((own.double() - exact).abs().max() + slack).item()
        worst = (seen.double() - exact).abs().max().item()
        if not worst <= limit:
            raise Wrong(f"{name}: result {number} is {worst:.2g} off, {limit:.2g} is allowed")


def results(operation: Operation, inputs: Sequence[Tensor], grads: bool) -> list[Tensor]:
    """Floating outputs, then gradients of every input for an uneven gradient from above."""
    inputs = [x.detach().clone().requires_grad_(grads) for x in inputs]
    found = floating(operation(*inputs))
    if not grads:
        return found
    ups = [torch.linspace(-1, 2, y.numel(), device=y.device).view(y.shape).to(y) for y in found]
    return [y.detach() for y in found] + list(torch.autograd.grad(found, inputs, ups))


def floating(found: Tensor | tuple[Tensor, ...]) -> list[Tensor]:
    """The outputs that gradients flow through."""
    outputs = [found] if isinstance(found, Tensor) else list(found)
    return [y for y in outputs if y.is_floating_point()]


def check_codes(name: str, codes: Tensor, vectors: Tensor, book: Tensor) -> None:
    """Hold codes to the nearest rows of the book in float64, but for ties in float32."""
    vectors, book = vectors[:4096].double(), book.double()
    far = book.square().sum(-1) - 2 * vectors @ book.T
    chosen = far.gather(1, codes[:4096, None].long())[:, 0]
    worst = ((chosen - far.min(1).values).max() / far.abs().max()).item()
    # a unit for each of the sums' sixteenths, and one for the last difference
    limit = (4 + book.shape[1] / 16) * torch.finfo(torch.float32).eps
    if not worst <= limit:
        raise Wrong(f"{name}: a code is {worst:.2g} further than the nearest, {limit:.2g} allowed")
