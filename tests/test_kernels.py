"""Every operation against its definition in float64: outputs and all gradients."""

import pytest
import torch

from kernels import reference, rms_norm, swiglu

DTYPES = [torch.float64, torch.float32, torch.bfloat16]


def gradients(operation, *inputs):
    """Give the output, and the gradient of each input for an uneven gradient from above."""
    inputs = [x.clone().requires_grad_() for x in inputs]
    y = operation(*inputs)
    up = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view_as(y)
    return (y.detach(), *torch.autograd.grad(y, inputs, up))


def assert_near(truth, mine, dtype):
    # a unit in the last place for each of the few roundings on the way
    slack = 4 * torch.finfo(dtype).eps if dtype != torch.float64 else 1e-12
    for exact, seen in zip(truth, mine, strict=True):
        assert (seen.double() - exact).abs().max() <= slack * exact.abs().max().clamp(min=1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(7,), (1, 5), (3, 33), (2, 3, 17, 24)])
def test_rms_norm_is_no_further_from_the_truth_than_its_definition(shape, dtype):
    random = torch.Generator().manual_seed(0)
    x = 3 * torch.randn(shape, generator=random, dtype=torch.float64)
    weight = torch.rand(shape[-1], generator=random, dtype=torch.float64) + 0.5
    truth = gradients(_exact, x, weight)
    mine = gradients(rms_norm, x.to(dtype), weight.to(torch.promote_types(dtype, torch.float32)))
    assert_near(truth, mine, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2,), (1, 6), (3, 34), (2, 3, 17, 24)])
def test_swiglu_is_its_definition_and_leaves_its_input_alone(shape, dtype):
    x = 3 * torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    given = x.to(dtype)
    before = given.clone()
    # the definition on what the narrow type holds: rounding the input is not the kernel's doing
    assert_near(gradients(reference.swiglu, given.double()), gradients(swiglu, given), dtype)
    assert torch.equal(given, before)


def _exact(x, weight):
    """The definition, which casts to float32, in float64."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * weight


def test_the_definition_of_rms_norm_is_what_it_says():
    x, weight = torch.randn(4, 9), torch.rand(9)
    assert torch.allclose(
        reference.rms_norm(x, weight), _exact(x.double(), weight.double()).float(), atol=1e-6
    )
