"""Check Triton kernels against their definitions: in the interpreter, or on a GPU where there is
one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

import kernels

# The interpreter is silently wrong in bfloat16, so that narrow dtypes need a GPU.
PLACES = [("cpu", torch.float32)]
if torch.cuda.is_available():
    PLACES = [("cuda", dtype) for dtype in (torch.float32, torch.float16, torch.bfloat16)]

each_place = pytest.mark.parametrize("place", PLACES, ids=lambda place: f"{place[0]}-{place[1]}")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@contextmanager
def triton_kernels() -> Iterator[None]:
    """Run operations as Triton kernels; new memory is NaN, so that unwritten values show."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    matmul = torch.get_float32_matmul_precision()
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.set_float32_matmul_precision("highest")
    kernels.set_backend("triton")
    try:
        assert torch.empty(1).isnan().item()
        yield
    finally:
        kernels.set_backend("auto")
        torch.set_float32_matmul_precision(matmul)
        torch.use_deterministic_algorithms(deterministic)


def drawn(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    """Draw random numbers in float64."""
    random = torch.Generator("cpu").manual_seed(seed)
    numbers = torch.randn(shape, generator=random, dtype=torch.float64, device="cpu")
    return scale * numbers.to(torch.get_default_device())


def outputs_and_gradients(
    operation: Callable[..., Tensor | tuple[Tensor, ...]], inputs: Sequence[Tensor]
) -> list[Tensor]:
    """Run on copies of the inputs; return the outputs and, if gradients are on, every input's
    gradient for an uneven gradient of the floating outputs."""
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    found = operation(*inputs)
    found = [found] if isinstance(found, Tensor) else list(found)
    outputs = [y.detach() for y in found]
    if not torch.is_grad_enabled():
        return outputs
    found = [y for y in found if y.is_floating_point()]
    ups = [torch.linspace(-1, 2, y.numel()).view(y.shape).to(y) for y in found]
    return outputs + list(torch.autograd.grad(found, inputs, ups))


def assert_as_near_as_torch(
    operation: Callable[..., Tensor | tuple[Tensor, ...]],
    definition: Callable[..., Tensor | tuple[Tensor, ...]],
    inputs: Sequence[Tensor],
    place: tuple[str, torch.dtype],
    hair: float = 4.0,
) -> None:
    """Check outputs and gradients of a kernel against the definition in float64.

    inputs: float64; rounded to the place's dtype first.  The error may be that of the definition in
    this dtype, plus `hair` units in the last place.
    """
    device, dtype = place
    narrow = [x.to(device, dtype) for x in inputs]
    truth = outputs_and_gradients(definition, [x.double() for x in narrow])
    torch_own = outputs_and_gradients(definition, narrow)
    with triton_kernels():
        mine = outputs_and_gradients(operation, narrow)
    assert len(truth) == len(mine)
    for number, (exact, usual, seen) in enumerate(zip(truth, torch_own, mine, strict=True)):
        assert seen.shape == exact.shape and seen.dtype == usual.dtype
        off, allowed = (x.double() - exact for x in (seen, usual))
        slack = hair * torch.finfo(dtype).eps * exact.abs().max().clamp(min=1)
        worst = off.abs().max().item()
        limit = (allowed.abs().max() + slack).item()
        assert worst <= limit, f"number {number}: {worst:.3g} off, {limit:.3g} is allowed"
