"""Every operation against its definition in float64: outputs and all gradients."""

import pytest
import torch

from kernels import View, attention, reference, rms_norm, swiglu
from pipeline import compiling

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


VIEWS = [
    View(),
    View(context=3),
    View(size=4),
    View(size=4, context=1),
    View(size=4, context=2),
    View(size=4, causal_inside=True),
    View(size=4, context=2, causal_inside=True),
    View(size=20),
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("past", [0, 8])
@pytest.mark.parametrize("view", VIEWS, ids=str)
def test_attention_in_pytorch_is_its_definition(view, past, dtype):
    """Whatever way is taken: sums, blocks, or PyTorch's own, in one product."""
    past = past if 20 % view.size == 0 and view.size < 20 else 0
    random = torch.Generator().manual_seed(0)
    q = torch.randn(2, 3, 20, 8, generator=random, dtype=torch.float64).to(dtype)
    k, v = torch.randn(2, 2, 3, 20 + past, 8, generator=random, dtype=torch.float64).to(dtype)
    turns = torch.rand(20 + past, 4, generator=random, dtype=torch.float64)
    angles = (turns.cos().to(dtype), turns.sin().to(dtype))

    def exact(q, k, v):
        return reference.attention(q, k, v, view, (angles[0].double(), angles[1].double()))

    def mine(q, k, v):
        return attention(q, k, v, view, angles)

    truth = gradients(exact, *(x.double() for x in (q, k, v)))
    slack = 12 * torch.finfo(dtype).eps if dtype != torch.float64 else 1e-12
    for one, other in zip(truth, gradients(mine, q, k, v), strict=True):
        assert (other.double() - one).abs().max() <= slack * one.abs().max().clamp(min=1)


@pytest.mark.skipif(not compiling.cpp_compiler(), reason="needs a C++ compiler")
@pytest.mark.parametrize(
    ("view", "keys"),
    [(View(64, causal_inside=True), 256), (View(64, context=3), 384), (View(context=3), 64)],
    ids=str,
)
def test_attention_in_pytorch_is_its_definition_when_compiled(view, keys):
    """With keys that are turned first: there the compiler's own way back has NaN."""
    random = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 4, 2, keys, 64, generator=random).bfloat16()
    turns = torch.rand(keys, 32, generator=random)
    angles = (turns.cos(), turns.sin())
    compiled = torch.compile(lambda q, k, v: attention(q, k, v, view, angles), dynamic=False)

    def exact(q, k, v):
        return reference.attention(q, k, v, view, (angles[0].double(), angles[1].double()))

    truth = gradients(exact, *(x.double() for x in (q, k, v)))
    for one, other in zip(truth, gradients(compiled, q, k, v), strict=True):
        assert (other.double() - one).abs().max() <= 0.03 * one.abs().max().clamp(min=1)


@pytest.mark.parametrize("context", [None, 3])
def test_one_query_in_pytorch_is_its_definition(context):
    view = View(context=context)
    q, k, v = torch.randn(2, 3, 1, 8), torch.randn(2, 3, 6, 8), torch.randn(2, 3, 6, 8)
    truth = reference.attention(q.double(), k.double(), v.double(), view)
    assert torch.allclose(attention(q, k, v, view).double(), truth, atol=1e-6)
