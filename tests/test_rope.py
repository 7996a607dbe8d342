"""RoPE in Triton against its definition, on views of a packed projection too."""

import pytest
import torch
from kernel_checks import assert_as_near_as_torch, drawn, each_place, needs_gpu, triton_kernels

import kernels
from kernels import reference

rope = pytest.importorskip("kernels.rope")


def angles(positions, pairs):
    angle = drawn(positions, pairs, seed=5)
    return angle.cos(), angle.sin()


def by_angles(operation, positions, pairs):
    cosine, sine = angles(positions, pairs)
    return lambda x: operation(x, cosine.to(x), sine.to(x))


@each_place
@pytest.mark.parametrize(
    "shape", [(5, 2), (3, 7, 6), (2, 9, 33, 64), (1, 3, 50, 48), (2, 1, 2, 3, 10)], ids=str
)
def test_rotation_is_as_near_to_the_truth_as_torch(shape, place):
    mine, truth = (
        by_angles(f, shape[-2], shape[-1] // 2) for f in (kernels.apply_rope, reference.apply_rope)
    )
    assert_as_near_as_torch(mine, truth, [drawn(*shape)], place)


@each_place
@pytest.mark.parametrize("part", range(3))
def test_heads_of_a_packed_projection_are_rotated_without_a_copy(part, place):
    def heads(operation):
        return lambda x: operation(x.permute(2, 0, 3, 1, 4)[part])

    mine, truth = (heads(by_angles(f, 11, 8)) for f in (kernels.apply_rope, reference.apply_rope))
    assert_as_near_as_torch(mine, truth, [drawn(2, 11, 3, 9, 16)], place)


@each_place
@pytest.mark.parametrize(
    "view", [lambda x: x.mT, lambda x: x[..., ::2], lambda x: x.expand(2, 3, -1, -1)]
)
def test_views_of_any_kind_have_the_same_gradients(view, place):
    def seen(operation):
        return lambda x: by_angles(operation, *pair)(view(x))

    x = drawn(1, 1, 12, 12)
    pair = view(x).shape[-2], view(x).shape[-1] // 2
    assert_as_near_as_torch(seen(kernels.apply_rope), seen(reference.apply_rope), [x], place)


@each_place
def test_an_output_gradient_may_have_another_layout(place):
    def after(operation):
        return lambda x: by_angles(operation, 5, 4)(x).transpose(1, 2).flatten(2).sin()

    inputs = [drawn(2, 3, 5, 8)]
    assert_as_near_as_torch(after(kernels.apply_rope), after(reference.apply_rope), inputs, place)


def test_rotating_forth_and_back_changes_nothing():
    x = torch.randn(2, 3, 5, 8, requires_grad=True)
    cosine, sine = (a.float() for a in angles(5, 4))
    with triton_kernels():
        (back,) = torch.autograd.grad(
            kernels.apply_rope(x, cosine, sine), x, kernels.apply_rope(x, cosine, sine)
        )
    assert torch.allclose(back, x, atol=1e-5)


def test_no_rows_give_no_rows():
    x = torch.zeros(0, 9, 4, 8, requires_grad=True)
    with triton_kernels():
        kernels.apply_rope(x, torch.ones(4, 4), torch.zeros(4, 4)).sum().backward()
    assert x.grad is not None and x.grad.shape == x.shape


def test_angles_of_other_positions_are_refused():
    with triton_kernels(), pytest.raises(AssertionError, match="do not fit"):
        kernels.apply_rope(torch.ones(1, 2, 5, 8), torch.ones(4, 4), torch.ones(4, 4))


def test_the_operator_is_registered_correctly():
    packed = torch.randn(2, 5, 3, 2, 8).permute(2, 0, 3, 1, 4)[1].requires_grad_()
    tests = ("test_schema", "test_faketensor", "test_autograd_registration")
    with triton_kernels():
        cosine, sine = (a.float() for a in angles(5, 4))
        torch.library.opcheck(rope._apply_rope, (packed, cosine, sine, False), test_utils=tests)


def test_the_public_function_runs_the_kernel(monkeypatch):
    monkeypatch.setattr(rope, "_apply_rope", lambda *_: "rotated")
    x = torch.ones(1, 2, 3, 4)
    with triton_kernels():
        assert kernels.apply_rope(x, torch.ones(3, 2), torch.ones(3, 2)) == "rotated"


@needs_gpu
def test_two_runs_on_a_gpu_are_equal():
    x = torch.randn(8, 9, 1024, 64, device="cuda").bfloat16().requires_grad_()
    cosine, sine = (a.float().cuda() for a in angles(1024, 32))

    def run():
        rotated = kernels.apply_rope(x, cosine, sine)
        return rotated, *torch.autograd.grad(rotated.float().square().sum(), x)

    with triton_kernels():
        assert all(torch.equal(a, b) for a, b in zip(run(), run(), strict=True))
