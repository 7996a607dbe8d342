"""The gates of a GRU in Triton against their definition, with and without LayerNorm."""

import pytest
import torch
from kernel_checks import assert_as_near_as_torch, drawn, each_place, needs_gpu, triton_kernels

import kernels
from bench.races.correctness import results
from kernels import reference

recurrent = pytest.importorskip("kernels.recurrent")

SHAPES = [(5,), (1, 1), (3, 7, 33), (70, 96), (3, 600), (2, 3, 1, 24)]


def step_inputs(*shape, normed):
    *rows, width = shape
    inputs = [2 * drawn(*rows, 3 * width), drawn(*shape, seed=1)]
    learned = [1 + drawn(3 * width, seed=2, scale=0.3), drawn(3 * width, seed=3)]
    return inputs + (learned if normed else [])


@each_place
@pytest.mark.parametrize("normed", [False, True], ids=["bare", "normed"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_step_is_as_near_to_the_truth_as_torch(shape, normed, place):
    inputs = step_inputs(*shape, normed=normed)
    assert_as_near_as_torch(kernels.gru_step, reference.gru_step, inputs, place)


@each_place
@pytest.mark.parametrize(("width", "normed"), [(1024, True), (2048, True), (4096, False)])
def test_a_wide_row_runs_in_one_program(width, normed, place):
    inputs = step_inputs(3, width, normed=normed)
    assert_as_near_as_torch(kernels.gru_step, reference.gru_step, inputs, place)


def test_a_wider_row_with_layer_norm_is_left_to_torch(monkeypatch):
    given = (x.float() for x in step_inputs(2, recurrent.MAX_DIM + 1, normed=True))
    parts, state, weight, bias = given
    monkeypatch.setattr(recurrent, "_gru_step", lambda *_: pytest.fail("a kernel ran"))
    with triton_kernels():
        seen = kernels.gru_step(parts, state, weight, bias)
    assert torch.equal(seen, reference.gru_step(parts, state, weight, bias))


@each_place
def test_views_have_the_same_gradients(place):
    def seen(operation):
        def step(parts, state, weight, bias):
            after = operation(parts.transpose(0, 1)[..., 3:], state.mT[:, ::2], weight, bias)
            return after.transpose(0, 1).cos()

        return step

    inputs = [drawn(4, 3, 27), drawn(3, 8, 8, seed=1), drawn(24, seed=2), drawn(24, seed=3)]
    assert_as_near_as_torch(seen(kernels.gru_step), seen(reference.gru_step), inputs, place)


def test_a_row_with_a_large_mean_stays_exact():
    parts, state, weight, bias = (x.float() for x in step_inputs(4, 40, normed=True))
    far = reference.gru_step(1000 + parts.double(), state, weight.double(), bias.double())
    with triton_kernels():
        assert torch.allclose(kernels.gru_step(1000 + parts, state, weight, bias), far, atol=2e-4)


def test_extreme_parts_give_finite_steps_and_gradients():
    parts = torch.tensor([[-1e4, 1e4, -80.0, 80.0, 1e4, -1e4]]).requires_grad_()
    with triton_kernels():
        state = kernels.gru_step(parts, torch.tensor([[0.5, -0.5]]))
        (grad,) = torch.autograd.grad(state.sum(), parts)
    expected = reference.gru_step(parts.detach(), torch.tensor([[0.5, -0.5]]))
    assert torch.allclose(state, expected, atol=1e-6) and grad.isfinite().all()


@pytest.mark.parametrize("normed", [False, True], ids=["bare", "normed"])
def test_sigmoids_by_roots_are_exact_to_16_bits(normed):
    inputs = [x.half() for x in step_inputs(70, 96, normed=normed)]
    with triton_kernels():
        mine = results(kernels.gru_step, inputs, grads=True)
    truth = results(reference.gru_step, [x.double() for x in inputs], grads=True)
    for one, exact in zip(mine, truth, strict=True):
        assert (one - exact).abs().max() < 2**-10 * exact.abs().max().clamp(min=1)


def test_no_rows_give_no_rows():
    parts, state = torch.zeros(0, 12, requires_grad=True), torch.zeros(0, 4)
    weight, bias = (torch.ones(12, requires_grad=True) for _ in range(2))
    with triton_kernels():
        kernels.gru_step(parts, state, weight, bias).sum().backward()
    assert parts.grad is not None and parts.grad.shape == (0, 12)
    assert weight.grad is not None and not weight.grad.any()


def test_float16_parts_and_a_float32_state_give_a_float32_state():
    parts, state = torch.randn(3, 12).half().requires_grad_(), torch.randn(3, 4, requires_grad=True)
    with triton_kernels():
        after = kernels.gru_step(parts, state)
        after.sum().backward()
    assert after.dtype == torch.float32
    assert parts.grad is not None and parts.grad.dtype == torch.float16
    assert state.grad is not None and state.grad.dtype == torch.float32


@pytest.mark.parametrize("normed", [False, True], ids=["bare", "normed"])
def test_the_operators_are_registered_correctly(normed):
    tests = ("test_schema", "test_faketensor", "test_autograd_registration")
    given = [x.float() for x in step_inputs(3, 8, normed=normed)]
    parts, state, weight, bias = given if normed else [*given, None, None]
    with triton_kernels():
        step = parts.requires_grad_(), state, weight, bias, 1e-3
        torch.library.opcheck(recurrent._gru_step, step, test_utils=tests)
        _, moments = recurrent._gru_step(parts.detach(), state, weight, bias, 1e-3)
        back = parts.detach(), state, weight, bias, moments, torch.ones(3, 8)
        torch.library.opcheck(recurrent._gru_step_backward, back, test_utils=tests)


def test_the_public_function_runs_the_kernel(monkeypatch):
    monkeypatch.setattr(recurrent, "_gru_step", lambda *_: ("a step", None))
    with triton_kernels():
        assert kernels.gru_step(torch.ones(2, 6), torch.ones(2, 2)) == "a step"


@needs_gpu
def test_two_runs_on_a_gpu_are_equal():
    inputs = [x.float().cuda().requires_grad_() for x in step_inputs(3000, 1024, normed=True)]

    def run():
        parts, state, weight, bias = inputs
        after = kernels.gru_step(parts, state, weight, bias)
        return after, *torch.autograd.grad(after.square().sum(), inputs)

    with triton_kernels():
        assert all(torch.equal(a, b) for a, b in zip(run(), run(), strict=True))
