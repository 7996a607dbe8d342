"""Norm, product and gate of a few rows in Triton against their definition."""

import pytest
import torch
from kernel_checks import drawn, each_place, triton_kernels
from torch import nn

import kernels
from kernels import reference
from models.transformer import Transformer, TransformerConfig

product = pytest.importorskip("kernels.product")

SHAPES = [(1, 1, 16, 8), (37, 1, 100, 33), (5, 20, 192, 576), (3, 7, 576, 50)]


def given(shape, place, branch):
    """Rows, what is added to them or nothing, the norm's weight, the matrix: in the place's type,
    which a GPU multiplies in bfloat16 alone."""
    count, tokens, width, outputs = shape
    device, kind = place
    rows = [3 * drawn(count, tokens, width, seed=n) for n in range(2)]
    weight, matrix = 1 + drawn(width, seed=2) / 4, drawn(outputs, width, seed=3) / width**0.5
    x, added, weight, matrix = (t.to(device, kind) for t in (*rows, weight, matrix))
    return x, added if branch else None, weight, matrix


def layer_of(matrix):
    layer = nn.Linear(*matrix.shape[::-1], bias=False)
    layer.weight = nn.Parameter(matrix)
    return layer


@each_place
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("branch", [False, True])
@pytest.mark.parametrize("gated", [False, True])
def test_norm_and_product_are_as_near_to_the_truth_as_torch(shape, place, branch, gated):
    x, added, weight, matrix = given(shape, place, branch)
    if gated:
        matrix = matrix[: len(matrix) // 2 * 2]
    wide = [None if t is None else t.double() for t in (x, added, weight, matrix)]
    truth = reference.norm_linear(*wide, gated)
    usual = kernels.norm_linear(x, added, weight, layer_of(matrix), gated)
    with triton_kernels(), torch.no_grad():
        total, seen = product.norm_linear(x, added, weight, matrix, gated, 1e-6)
    assert torch.equal(total, usual[0])
    far = (usual[1].double() - truth[1]).norm()
    scale = 1e-6 if place[1] == torch.float32 else 2e-3
    assert (seen.double() - truth[1]).norm() <= 1.5 * far + scale * truth[1].norm()


def test_it_is_for_few_rows_without_gradients():
    x, matrix = torch.randn(product.FEW, 8), torch.randn(4, 8)
    with triton_kernels():
        assert not product.fits(x, matrix)
        with torch.no_grad():
            assert product.fits(x, matrix)
            assert not product.fits(torch.randn(product.FEW + 1, 8), matrix)


def test_weights_that_are_not_held_narrow_are_left_to_torch(monkeypatch):
    monkeypatch.setattr(product, "interpreted", lambda: False)
    with torch.no_grad():
        assert not product.fits(torch.randn(2, 8), torch.randn(4, 8))
        assert product.fits(torch.randn(2, 8), torch.randn(4, 8).bfloat16())


def test_no_rows_give_no_rows():
    with triton_kernels(), torch.no_grad():
        total, seen = kernels.norm_linear(
            torch.zeros(3, 0, 8), torch.zeros(3, 0, 8), torch.ones(8), layer_of(torch.ones(6, 8))
        )
    assert total.shape == (3, 0, 8) and seen.shape == (3, 0, 6)


def test_the_operation_is_what_torch_asks_of_it():
    x, added, weight, matrix = given((3, 2, 16, 8), ("cpu", torch.float32), True)
    tests = ("test_schema", "test_faketensor")
    for branch in (None, added):
        with triton_kernels():
            torch.library.opcheck(
                product._norm_product, (x, branch, weight, matrix, True, 1e-6), test_utils=tests
            )


@each_place
def test_a_transformer_is_the_same_with_it(place):
    config = TransformerConfig(width=32, layers=2, heads=2, hidden=48, context=3)
    places = torch.cartesian_prod(torch.arange(2), torch.arange(2))
    model = Transformer(config, places, causal_inside=False).to(*place)
    x = drawn(3, 8, 32).to(*place)
    with torch.no_grad():
        usual, cache = model(x)
        again = model(x[:, :4], cache)[0]
        with triton_kernels():
            seen, cache = model(x)
            later = model(x[:, :4], cache)[0]
    slack = 1e-5 if place[1] == torch.float32 else 5e-2
    assert torch.allclose(seen.float(), usual.float(), atol=slack)
    assert torch.allclose(later.float(), again.float(), atol=slack)


def test_what_has_gradients_goes_another_way(monkeypatch):
    monkeypatch.setattr(product, "norm_linear", lambda *_: pytest.fail("it has no gradients"))
    layer = layer_of(torch.randn(6, 8))
    with triton_kernels():
        kernels.norm_linear(torch.randn(2, 8), None, torch.ones(8), layer)[1].sum().backward()
    assert layer.weight.grad is not None
