"""SwiGLU in Triton against its definition."""

import pytest
import torch
from kernel_checks import assert_as_near_as_torch, drawn, each_place, needs_gpu, triton_kernels

import kernels
from kernels import reference

gate = pytest.importorskip("kernels.gate")


@each_place
@pytest.mark.parametrize(
    "shape", [(2,), (1, 6), (3, 5, 66), (37, 192), (2, 2688), (3, 2, 1, 2, 20)], ids=str
)
def test_swiglu_is_as_near_to_the_truth_as_torch(shape, place):
    assert_as_near_as_torch(kernels.swiglu, reference.swiglu, [3 * drawn(*shape)], place)


@each_place
@pytest.mark.parametrize("view", [lambda x: x.mT, lambda x: x[:, ::2, 2:], lambda x: x.flip(-1)])
def test_views_of_any_kind_have_the_same_gradients(view, place):
    def seen(operation):
        return lambda x: operation(view(x)).transpose(0, 1).cos()

    inputs = [drawn(3, 14, 14)]
    assert_as_near_as_torch(seen(kernels.swiglu), seen(reference.swiglu), inputs, place)


@each_place
def test_saturated_gates_are_finite(place):
    x = torch.tensor([[-300.0, -90.0, 0.0, 90.0, 300.0, 1.0, 1.0, 1.0, 1.0, 1.0]])
    x = x.to(*place).requires_grad_()
    with triton_kernels():
        y = kernels.swiglu(x)
        (grad,) = torch.autograd.grad(y.sum(), x)
    assert y.tolist() == [[0, 0, 0, 90, 300]]
    assert grad.isfinite().all() and grad[0, :5].tolist() == [0, 0, 0.5, 1, 1]


def test_padding_of_the_last_tile_is_small():
    for width in (576, 768, 1536, 2048, 2688, 3072):
        columns, rows = (gate._tiles(width, 1)[1][name] for name in ("TILE", "ROWS"))
        assert -width % columns <= width / 16 and columns * rows == 2048


def test_no_rows_give_no_rows():
    x = torch.zeros(3, 0, 8, requires_grad=True)
    with triton_kernels():
        y = kernels.swiglu(x)
        y.sum().backward()
    assert y.shape == (3, 0, 4) and x.grad is not None and x.grad.shape == x.shape


def test_the_operators_are_registered_correctly():
    tests = ("test_schema", "test_faketensor", "test_autograd_registration")
    x = torch.randn(3, 8, requires_grad=True)
    with triton_kernels():
        torch.library.opcheck(gate._swiglu, (x,), test_utils=tests)
        strided = torch.randn(8, 3).T
        back = (strided, torch.randn(3, 4))
        torch.library.opcheck(gate._swiglu_backward, back, test_utils=tests)


def test_the_public_function_runs_the_kernel(monkeypatch):
    monkeypatch.setattr(gate, "_swiglu", lambda _: "gated")
    with triton_kernels():
        assert kernels.swiglu(torch.ones(2, 4)) == "gated"


@needs_gpu
def test_two_runs_on_a_gpu_are_equal():
    x = torch.randn(5000, 2 * 2688, device="cuda").bfloat16().requires_grad_()

    def run():
        gated = kernels.swiglu(x)
        return gated, *torch.autograd.grad(gated.float().square().sum(), x)

    with triton_kernels():
        assert all(torch.equal(a, b) for a, b in zip(run(), run(), strict=True))
