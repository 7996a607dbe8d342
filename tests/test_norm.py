"""RMSNorm in Triton against its definition, alone and after an addition."""

import pytest
import torch
from kernel_checks import (
    PLACES,
    assert_as_near_as_torch,
    drawn,
    each_place,
    needs_gpu,
    triton_kernels,
)

import kernels
from kernels import reference
from models.layers.transformer import Transformer, TransformerConfig

norm = pytest.importorskip("kernels.norm")
rows = pytest.importorskip("kernels.rows")

ALL = ("test_schema", "test_faketensor", "test_autograd_registration")
SHAPES = [(7,), (1, 1), (3, 5, 64), (37, 576), (70, 33), (2, 1000), (2, 3, 2, 2, 24), (2, 2304)]


@each_place
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rms_norm_is_as_near_to_the_truth_as_torch(shape, place):
    inputs = [3 * drawn(*shape), 1 + drawn(shape[-1], seed=1)]
    assert_as_near_as_torch(kernels.rms_norm, reference.rms_norm, inputs, place)


@each_place
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_add_rms_norm_is_as_near_to_the_truth_as_torch(shape, place):
    inputs = [3 * drawn(*shape), drawn(*shape, seed=2), 1 + drawn(shape[-1], seed=1)]
    assert_as_near_as_torch(kernels.add_rms_norm, reference.add_rms_norm, inputs, place)


@each_place
def test_heads_of_a_packed_projection_are_normed_without_a_copy(place):
    def heads(operation):
        return lambda x, weight: operation(x.permute(2, 0, 3, 1, 4)[1], weight)

    inputs = [drawn(2, 5, 3, 9, 16), 1 + drawn(16, seed=1)]
    assert_as_near_as_torch(heads(kernels.rms_norm), heads(reference.rms_norm), inputs, place)
    view = inputs[0].to(*place).permute(2, 0, 3, 1, 4)[1]
    with triton_kernels():
        y = kernels.rms_norm(view, torch.ones(16, device=view.device))
    assert y.transpose(1, 2).is_contiguous(), "the order in memory is not that of the view"


@each_place
@pytest.mark.parametrize("view", ["T", "expand", "slice", "flip"])
def test_views_of_any_kind_have_the_same_gradients(view, place):
    def seen(operation):
        views = {
            "T": lambda x: x.mT,
            "expand": lambda x: x[:, :1].expand(-1, 20, -1),
            "slice": lambda x: x[:, ::2, 4:],
            "flip": lambda x: x.flip(1),
        }
        return lambda x, y, weight: operation(views[view](x), views[view](y), weight)

    width = 20 if view != "slice" else 16
    inputs = [drawn(3, 20, 20), drawn(3, 20, 20, seed=1), drawn(width, seed=2)]
    assert_as_near_as_torch(seen(kernels.add_rms_norm), seen(reference.add_rms_norm), inputs, place)


@each_place
def test_an_output_gradient_may_have_any_layout(place):
    def transposed(operation):
        return lambda x, weight: operation(x, weight).transpose(1, 3).contiguous().cos()

    inputs = [drawn(2, 3, 4, 24), drawn(24, seed=1)]
    mine, truth = transposed(kernels.rms_norm), transposed(reference.rms_norm)
    assert_as_near_as_torch(mine, truth, inputs, place)


@each_place
def test_the_norm_alone_has_the_gradients_of_the_definition(place):
    def normed(operation):
        return lambda *inputs: operation(*inputs)[1]

    inputs = [drawn(5, 40), drawn(5, 40, seed=1), drawn(40, seed=2)]
    assert_as_near_as_torch(
        normed(kernels.add_rms_norm), normed(reference.add_rms_norm), inputs, place
    )


def test_a_frozen_norm_passes_the_gradient_on_and_has_none():
    weight, grads = 1 + drawn(64, seed=1), []
    for trains in (True, False):
        x, own = drawn(3, 64).requires_grad_(), weight.clone().requires_grad_(trains)
        kernels.rms_norm(x, own).square().sum().backward()
        assert (own.grad is not None) == trains
        grads.append(x.grad)
    assert torch.equal(*grads)


def test_a_float32_stream_keeps_its_dtype_when_a_float16_branch_is_added():
    x = torch.randn(6, 20, requires_grad=True)
    branch = torch.randn(6, 20).half().requires_grad_()
    with triton_kernels():
        total, normed = norm.add_rms_norm(x, branch, torch.ones(20))
    assert total.dtype == normed.dtype == torch.float32
    assert torch.equal(total, x + branch)
    (total + normed).sum().backward()
    assert x.grad is not None and branch.grad is not None and branch.grad.dtype == torch.float16
    assert torch.equal(branch.grad, x.grad.half())


def test_a_norm_in_another_dtype_is_the_norm_cast_to_it():
    device = PLACES[0][0]
    x, branch, weight = (torch.randn(n, 600, device=device) for n in (18, 18, 1))
    branch, weight = branch.half(), weight[0]
    up = torch.randn(2, 18, 600, device=device)
    up[1] = up[1].half()

    def run(dtype):
        given = [x.clone().requires_grad_() for x in (x, branch, weight)]
        with triton_kernels():
            total, normed = norm.add_rms_norm(*given, dtype=dtype)
            alone = norm.rms_norm(given[0], given[2], dtype=dtype)
        cast = up[1].to(normed.dtype)
        grads = torch.autograd.grad((total, normed, alone), given, (up[0], cast, cast))
        return normed, alone, *grads

    usual, narrow = run(None), run(torch.float16)
    assert narrow[0].dtype == narrow[1].dtype == torch.float16
    for one, other in zip(narrow[:2], usual[:2], strict=True):
        assert torch.allclose(one, other.half(), rtol=2e-3, atol=1e-6)
    for one, other in zip(narrow[2:], usual[2:], strict=True):
        assert one.dtype == other.dtype and torch.allclose(one, other, rtol=2e-3, atol=1e-4)


def test_no_rows_give_no_rows():
    x, weight = torch.zeros(0, 576, requires_grad=True), torch.ones(576, requires_grad=True)
    with triton_kernels():
        total, normed = kernels.add_rms_norm(x, x, weight)
        (kernels.rms_norm(x, weight).sum() + normed.sum() + total.sum()).backward()
    assert x.grad is not None and x.grad.shape == (0, 576)
    assert weight.grad is not None and not weight.grad.any()


def test_the_operators_are_registered_correctly():
    view = torch.randn(2, 3, 4, 16).transpose(1, 2).requires_grad_()
    weight = torch.randn(16, requires_grad=True)
    other = torch.randn(2, 4, 3, 16)
    with triton_kernels():
        torch.library.opcheck(norm._rms_norm, (view, weight, 1e-6, None), test_utils=ALL)
        added = view, other, weight, 1e-6
        back = view.detach(), other, None, weight.detach(), 1e-6
        for dtype in (None, torch.float16):
            torch.library.opcheck(norm._add_rms_norm, (*added, dtype), test_utils=ALL)
            torch.library.opcheck(norm._rms_norm_backward, (*back, dtype), test_utils=ALL)


def test_the_public_functions_run_the_kernels(monkeypatch):
    x, weight = torch.randn(3, 8), torch.ones(8)
    monkeypatch.setattr(norm, "_rms_norm", lambda *_: "a norm")
    monkeypatch.setattr(norm, "_add_rms_norm", lambda *_: "a sum and its norm")
    with triton_kernels():
        assert kernels.rms_norm(x, weight) == "a norm"
        assert kernels.add_rms_norm(x, x, weight) == "a sum and its norm"


@needs_gpu
def test_two_runs_on_a_gpu_are_equal():
    def run():
        random = torch.Generator("cuda").manual_seed(0)
        x = torch.randn(20_000, 576, device="cuda", generator=random).bfloat16().requires_grad_()
        weight = torch.ones(576, device="cuda", requires_grad=True)
        total, normed = kernels.add_rms_norm(x, x.detach(), weight)
        return [normed, *torch.autograd.grad((total * normed).float().sum(), (x, weight))]

    with triton_kernels():
        assert all(torch.equal(a, b) for a, b in zip(run(), run(), strict=True))


def test_prefetched_rows_fit_in_a_multiprocessor():
    for width in (64, 576, 4096, 8192):
        for itemsize in (2, 4):
            tiles = norm._backward_tiles(width, itemsize)
            prefetched = 3 * tiles["ROWS"] * width * itemsize * (tiles["STAGES"] - 1)
            assert prefetched <= rows.SHARED_MEMORY and tiles["STAGES"] > 1


def test_norms_before_products_are_in_the_dtype_of_autocast(monkeypatch):
    device, narrow = PLACES[0][0], torch.float16
    config = TransformerConfig(dim=32, num_layers=2, num_heads=2, mlp_dim=48, context_frames=2)
    torch.manual_seed(0)
    model = Transformer(config, torch.zeros(3, 2), causal_within_frame=True).to(device)
    x, seen = torch.randn(2, 6, 32, device=device), []

    def run():
        model.zero_grad(set_to_none=True)
        with triton_kernels(), torch.autocast(device, narrow):
            y = model(x)[0]
        y.square().sum().backward()
        return [y, *(p.grad for p in model.parameters())]

    usual = run()
    launch = norm._launch_forward
    monkeypatch.setattr(kernels, "_autocast_dtype", lambda x: narrow)  # it is None without a GPU
    monkeypatch.setattr(
        norm, "_launch_forward", lambda *given: seen.append(given[-1]) or launch(*given)
    )
    mine = run()
    assert seen.count(narrow) == 4 and mine[0].dtype == usual[0].dtype == torch.float32
    for one, other in zip(mine, usual, strict=True):
        assert torch.allclose(one, other, rtol=0.02, atol=0.02 * float(other.abs().max()))
