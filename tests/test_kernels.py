"""Every operation in PyTorch against its definition in float64: outputs and all gradients."""

import pytest
import torch
from kernel_checks import drawn, outputs_and_gradients

from kernels import (
    BlockMask,
    attention,
    attention_with_cache,
    decode_attention,
    eager,
    linear_cross_entropy,
    nearest_code,
    reference,
    rms_norm,
    swiglu,
)
from pipeline.device import pick_precision
from pipeline.training import auto_compile

DTYPES = [torch.float64, torch.float32, torch.bfloat16]


def gradients(operation, *inputs):
    """Return the output, and the gradient of each input for an uneven output gradient."""
    inputs = [x.clone().requires_grad_() for x in inputs]
    y = operation(*inputs)
    up = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view_as(y)
    return (y.detach(), *torch.autograd.grad(y, inputs, up))


def assert_near(truth, mine, dtype, roundings=4):
    """Allow a unit in the last place for each rounding."""
    slack = roundings * torch.finfo(dtype).eps if dtype != torch.float64 else 1e-12
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
    # the definition on rounded inputs: that rounding is not the operation's error
    assert_near(gradients(reference.swiglu, given.double()), gradients(swiglu, given), dtype)
    assert torch.equal(given, before)


def _exact(x, weight):
    """The definition, which casts to float32, in float64."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * weight


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [3, eager.FEW_NUMBERS // 24 + 1])
def test_rms_norm_without_a_gradient_is_its_definition(rows, dtype):
    x, weight = drawn(rows, 24).to(dtype), drawn(24).to(dtype)
    given = x.clone()
    truth = reference.rms_norm(x.double(), weight.double())
    assert_near([truth], [rms_norm(x, weight)], dtype)
    assert torch.equal(x, given)


def test_the_definition_of_rms_norm_is_its_equation():
    x, weight = torch.randn(4, 9), torch.rand(9)
    assert torch.allclose(
        reference.rms_norm(x, weight), _exact(x.double(), weight.double()).float(), atol=1e-6
    )


MASKS = [
    BlockMask(),
    BlockMask(context_blocks=3),
    BlockMask(block_size=4),
    BlockMask(block_size=4, context_blocks=1),
    BlockMask(block_size=4, context_blocks=2),
    BlockMask(block_size=4, causal_within_block=True),
    BlockMask(block_size=4, context_blocks=2, causal_within_block=True),
    BlockMask(block_size=20),
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("past", [0, 8])
@pytest.mark.parametrize("block_mask", MASKS, ids=str)
def test_attention_in_pytorch_is_its_definition(block_mask, past, dtype):
    """Holds for every implementation: sums, blocks, or PyTorch's own, in one product."""
    past = past if 20 % block_mask.block_size == 0 and block_mask.block_size < 20 else 0
    random = torch.Generator().manual_seed(0)
    q = torch.randn(2, 3, 20, 8, generator=random, dtype=torch.float64).to(dtype)
    k, v = torch.randn(2, 2, 3, 20 + past, 8, generator=random, dtype=torch.float64).to(dtype)
    angle = torch.rand(20 + past, 4, generator=random, dtype=torch.float64)
    angles = (angle.cos().to(dtype), angle.sin().to(dtype))

    def exact(q, k, v):
        return reference.attention(q, k, v, block_mask, (angles[0].double(), angles[1].double()))

    def mine(q, k, v):
        return attention(q, k, v, block_mask, angles)

    truth = gradients(exact, *(x.double() for x in (q, k, v)))
    slack = 12 * torch.finfo(dtype).eps if dtype != torch.float64 else 1e-12
    for one, other in zip(truth, gradients(mine, q, k, v), strict=True):
        assert (other.double() - one).abs().max() <= slack * one.abs().max().clamp(min=1)


@pytest.mark.skipif(not auto_compile.cpp_compiler(), reason="needs a C++ compiler")
@pytest.mark.parametrize(
    ("block_mask", "keys"),
    [
        (BlockMask(64, context_blocks=2), 256),  # less than half in view: by blocks
        (BlockMask(context_blocks=3), 64),  # few keys: one mask
    ],
    ids=str,
)
def test_attention_in_pytorch_is_its_definition_when_compiled(block_mask, keys):
    """Holds for rotated keys: there the compiler's own backward pass gives NaN."""
    bf16 = pick_precision(torch.device("cpu"), "auto") == "bf16"  # models are trained so here
    dtype = torch.bfloat16 if bf16 else torch.float32
    random = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 4, 2, keys, 64, generator=random).to(dtype)
    angle = torch.rand(keys, 32, generator=random)
    angles = (angle.cos(), angle.sin())
    compiled = torch.compile(lambda q, k, v: attention(q, k, v, block_mask, angles), dynamic=False)

    def exact(q, k, v):
        return reference.attention(q, k, v, block_mask, (angles[0].double(), angles[1].double()))

    truth = gradients(exact, *(x.double() for x in (q, k, v)))
    for one, other in zip(truth, gradients(compiled, q, k, v), strict=True):
        most = (0.03 if bf16 else 1e-5) * one.abs().max().clamp(min=1)
        assert (other.double() - one).abs().max() <= most


@pytest.mark.parametrize("context", [None, 3])
def test_one_query_in_pytorch_is_its_definition(context):
    block_mask = BlockMask(context_blocks=context)
    q, k, v = torch.randn(2, 3, 1, 8), torch.randn(2, 3, 6, 8), torch.randn(2, 3, 6, 8)
    truth = reference.attention(q.double(), k.double(), v.double(), block_mask)
    assert torch.allclose(attention(q, k, v, block_mask).double(), truth, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "block_mask",
    [BlockMask(4), BlockMask(1, 3), BlockMask(4, 2, causal_within_block=True)],
    ids=str,
)
def test_attention_with_a_cache_in_pytorch_is_its_definition(block_mask, dtype):
    q, k, v = (drawn(2, 3, 4, 8, seed=n).to(dtype) for n in range(3))
    keys, values = (drawn(2, 3, 8, 8, seed=n).half() for n in (3, 4))
    angle = drawn(12, 4, seed=5)
    cosine, sine = angle.cos().to(dtype), angle.sin().to(dtype)

    def exact(q, k, v):
        # the cache is cast to the dtype of the new keys
        past = keys.to(dtype).double(), values.to(dtype).double()
        return reference.attention_with_cache(
            q, k, v, past, block_mask, (cosine.double(), sine.double())
        )

    def mine(q, k, v):
        return attention_with_cache(q, k, v, (keys, values), block_mask, (cosine, sine))

    truth = outputs_and_gradients(exact, [x.double() for x in (q, k, v)])
    found = outputs_and_gradients(mine, [q, k, v])
    assert all(torch.equal(a.double(), b) for a, b in zip(found[1:3], truth[1:3], strict=True))
    assert_near(truth, found, dtype, roundings=12)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("bounds", [(0, 20), (3, 17), (6, 7)], ids=str)
def test_attention_to_a_cache_in_pytorch_is_its_definition(bounds, compiled, dtype):
    q, keys, values = (drawn(2, 3, n, 8, seed=n + i).to(dtype) for i, n in enumerate((5, 20, 20)))
    within = torch.tensor(bounds, dtype=torch.int32)
    truth = reference.decode_attention(q.double(), keys.double(), values.double(), within)
    torch.compiler.reset()
    mine = torch.compile(decode_attention, backend="eager") if compiled else decode_attention
    assert_near([truth], [mine(q, keys, values, within)], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("more", ["", "bias", "bonus", "bias, bonus"])
def test_cross_entropy_in_pytorch_is_its_definition(more, dtype):
    row = torch.arange(33)
    inputs = [drawn(33, 24), drawn(7, 24, seed=1, scale=0.2)]
    inputs += [drawn(7, seed=2)] * ("bias" in more) + [drawn(33, seed=3)] * ("bonus" in more)
    inputs = [x.to(dtype) for x in inputs]

    def by(operation, target=row % 7):
        def run(x, weight, *more_inputs):
            bias = more_inputs[0] if "bias" in more else None
            before, bonus = (row % 5, more_inputs[-1]) if "bonus" in more else (None, None)
            return operation(x, weight, target, bias, before, bonus)

        return run

    wide = [x.double() for x in inputs]
    losses, likeliest, *grads = outputs_and_gradients(by(reference.linear_cross_entropy), wide)
    mine, found, *my_grads = outputs_and_gradients(by(linear_cross_entropy), inputs)
    assert_near([losses, *grads], [mine, *my_grads], dtype)
    # of classes that are equal up to rounding, either may be found: both have the least loss
    least, own = (by(reference.linear_cross_entropy, c)(*wide)[0] for c in (likeliest, found))
    assert_near([least], [own], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nearest_codes_in_pytorch_are_their_definition(dtype):
    """Holds for several parts, of which the last is not full."""
    book = drawn(20, 8, seed=1).to(torch.promote_types(dtype, torch.float32))
    vectors = drawn(1500, 8).to(dtype)
    codes, counts, sums = nearest_code(vectors, book)
    truth = reference.nearest_code(vectors.double(), book.double())
    assert torch.equal(codes, truth[0]) and torch.equal(counts, truth[1])
    assert_near(truth[2:], [sums], book.dtype)
