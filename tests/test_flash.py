"""Attention by Triton kernels against its definition, and properties under every mask."""

import pytest
import torch
from kernel_checks import assert_as_near_as_torch, drawn, each_place, needs_gpu, triton_kernels

import kernels
from kernels import BlockMask, eager, reference

pytest.importorskip("triton")

from kernels import flash, flash_launch, flash_short

# batch, heads, queries, keys, head dim, mask, whether rotated; up to 64 keys use the short kernels
CASES = {
    "short, causal": (3, 9, 8, 8, 16, BlockMask(), True),
    "short, cached window": (1, 3, 16, 48, 24, BlockMask(8, 3, causal_within_block=True), True),
    "short, one sequence a tile": (1, 2, 33, 33, 16, BlockMask(11), False),
    "short, 80 wide": (1, 3, 20, 20, 80, BlockMask(5), True),
    "short, 128 wide": (1, 2, 8, 24, 128, BlockMask(), False),
    "causal": (1, 1, 70, 70, 32, BlockMask(), False),
    "frames": (1, 1, 150, 150, 24, BlockMask(10), True),
    "one frame": (1, 2, 77, 77, 16, BlockMask(77), True),
    "cached window": (1, 1, 100, 150, 16, BlockMask(10, 4), False),
    "unused keys": (1, 1, 70, 210, 16, BlockMask(10, 3, causal_within_block=True), True),
    "80 wide": (1, 1, 70, 70, 80, BlockMask(), False),
    "80 wide, cached window": (1, 1, 40, 100, 80, BlockMask(10, 4), True),
    "128 wide": (1, 1, 140, 140, 128, BlockMask(10, 3, causal_within_block=True), True),
}
OPCHECKS = ("test_schema", "test_faketensor", "test_autograd_registration")


def given(batch, heads, queries, keys, head, rotated=True):
    """Draw queries, keys, values; cosine and sine or nothing."""
    lengths = (queries, keys, keys)
    inputs = [drawn(batch, heads, n, head, seed=n + i) for i, n in enumerate(lengths)]
    angles = drawn(keys, head // 2, seed=9)
    return inputs, (angles.cos(), angles.sin()) if rotated else ()


def with_mask(operation, block_mask, angles):
    """Return the operation as a function of queries, keys and values, the angles cast to them."""

    def run(q, k, v):
        return operation(q, k, v, block_mask, tuple(x.to(q) for x in angles) or None)

    return run


def attended(inputs, block_mask, angles):
    """Attend with the Triton kernels."""
    with triton_kernels():
        q, k, v = inputs
        return with_mask(kernels.attention, block_mask, angles)(q, k, v)


@each_place
@pytest.mark.parametrize("case", CASES)
def test_attention_and_its_gradients_are_as_near_as_torch(case, place):
    batch, heads, queries, keys, head, block_mask, rotated = CASES[case]
    inputs, angles = given(batch, heads, queries, keys, head, rotated)
    mine, definition = (with_mask(x.attention, block_mask, angles) for x in (kernels, reference))
    assert_as_near_as_torch(mine, definition, inputs, place)


@each_place
def test_groups_of_heads_are_as_near_as_torch(place, monkeypatch):
    inputs, angles = given(1, 9, 70, 70, 64)
    k = inputs[1].to(place[1])
    monkeypatch.setattr(flash_launch, "CACHE_BYTES", k.numel() * k.element_size())  # half of k, v
    assert flash_launch.sizes(k, k)[-1] == 5  # and then 4
    mine, definition = (with_mask(x.attention, BlockMask(), angles) for x in (kernels, reference))
    assert_as_near_as_torch(mine, definition, inputs, place)


@pytest.mark.parametrize("keys", [40, 80])
@pytest.mark.parametrize(
    "block_mask", [BlockMask(), BlockMask(8), BlockMask(40, causal_within_block=True)]
)
def test_the_future_does_not_reach_the_past(block_mask, keys):
    inputs, angles = given(1, 1, keys, keys, 16)
    inputs = [x.float() for x in inputs]
    before = attended(inputs, block_mask, angles)
    changed = [x.clone() for x in inputs]
    for x in changed:
        x[:, :, -8:] += 1
    after = attended(changed, block_mask, angles)
    assert torch.equal(before[:, :, :-8], after[:, :, :-8])
    assert not torch.allclose(before[:, :, -8:], after[:, :, -8:])


@pytest.mark.parametrize("keys", [40, 120])
def test_keys_out_of_the_context_have_no_effect_and_get_no_gradient(keys):
    (q, k, v), angles = given(1, 1, keys, keys, 16)
    q, k, v = (x.float() for x in (q[:, :, -10:], k, v))
    leaves = [k.requires_grad_(), v.requires_grad_()]
    seen = attended([q, k, v], BlockMask(10, 2), angles)
    # the output gradient of a sum is one expanded number
    for grad in torch.autograd.grad(seen.sum() + seen.square().sum(), leaves):
        assert not grad[:, :, :-20].any()
        assert grad[:, :, -20:].abs().sum(-1).all()
    with torch.no_grad():
        changed = [torch.cat([x[:, :, :-20] + 1, x[:, :, -20:]], dim=2) for x in (k, v)]
    assert torch.equal(seen, attended([q, *changed], BlockMask(10, 2), angles))


@pytest.mark.parametrize("keys", [48, 96])
def test_the_last_queries_alone_attend_as_among_all(keys):
    inputs, angles = given(1, 1, keys, keys, 16)
    q, k, v = (x.float() for x in inputs)
    whole = attended([q, k, v], BlockMask(8, 3), angles)
    parts = [attended([q[:, :, -n:], k, v], BlockMask(8, 3), angles) for n in (8, 24)]
    for part in parts:
        assert torch.allclose(part, whole[:, :, -part.shape[2] :], atol=1e-6)


@each_place
@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize(
    ("past", "own", "block_mask"),
    [
        (1, 1, BlockMask(1, 3)),
        (12, 6, BlockMask(6, 3)),
        (12, 6, BlockMask(6, 2, causal_within_block=True)),
        (60, 4, BlockMask(4)),
    ],
    ids=str,
)
def test_a_cache_is_read_and_extended_in_one_kernel(
    past, own, block_mask, rotated, place, monkeypatch
):
    monkeypatch.setattr(flash, "attention", lambda *_: pytest.fail("concatenated first"))
    (q, k, v), angles = given(3, 2, own, past + own, 24, rotated)
    q, k, v = (x.to(*place) for x in (q, k, v))
    cosine, sine = (a.float().to(place[0]) for a in angles) if rotated else (None, None)
    angles = None if cosine is None or sine is None else (cosine, sine)
    past_k, past_v = (x[:, :, :past].mT.contiguous().mT for x in (k, v))
    own_k, own_v = (x[:, :, past:] for x in (k, v))
    wide = None if angles is None else (angles[0].double(), angles[1].double())
    truth = reference.attention(q.double(), k.double(), v.double(), block_mask, wide)
    usual = reference.attention(q, k, v, block_mask, angles)
    with triton_kernels(), torch.no_grad():
        found = kernels.attention_with_cache(q, own_k, own_v, (past_k, past_v), block_mask, angles)
    seen, keys, values = found
    assert torch.equal(keys, k) and torch.equal(values, v)
    slack = 1e-6 if place[1] == torch.float32 else 2e-3
    off, known_off = (seen - truth).norm(), (usual - truth).norm()
    assert off <= 1.5 * known_off + slack * truth.norm()


def test_a_cache_of_another_dtype_or_with_gradients_is_concatenated_first(monkeypatch):
    monkeypatch.setattr(flash, "short_attention_with_cache", lambda *_: pytest.fail("one kernel"))
    (q, k, v), _ = given(1, 1, 2, 4, 16, False)
    q, k, v = (x.float() for x in (q, k, v))
    past, own_k, own_v = (k[:, :, :2], v[:, :, :2]), k[:, :, 2:].requires_grad_(), v[:, :, 2:]
    narrow = (past[0].half(), past[1].half())
    with triton_kernels():
        seen = kernels.attention_with_cache(q, own_k, own_v, past, BlockMask(2))[0]
        (grad,) = torch.autograd.grad(seen.sum(), own_k)
        with torch.no_grad():
            again, keys, _ = kernels.attention_with_cache(q, own_k, own_v, narrow, BlockMask(2))
    assert grad.abs().sum() > 0 and keys.dtype == torch.float32
    assert torch.allclose(again, seen, atol=1e-2)


@pytest.mark.parametrize("keys", [24, 72])
def test_views_of_a_packed_projection_give_the_same_as_copies(keys):
    packed = drawn(1, keys, 3, 2, 16).float().requires_grad_()
    copied = packed.detach().clone().requires_grad_()
    _, angles = given(1, 1, 1, keys, 16)
    parts = packed.permute(2, 0, 3, 1, 4).unbind()
    assert not any(x.is_contiguous() for x in parts)
    mine = attended(parts, BlockMask(8), angles)
    other = attended([x.contiguous() for x in copied.permute(2, 0, 3, 1, 4)], BlockMask(8), angles)
    assert torch.equal(mine, other)
    assert mine.transpose(1, 2).is_contiguous()  # heads join without a copy
    up = torch.linspace(-1, 2, mine.numel()).view(mine.shape)
    (packed_grad,) = torch.autograd.grad(mine, packed, up)
    strided_up = up.transpose(2, 3).contiguous().transpose(2, 3)
    (copied_grad,) = torch.autograd.grad(other, copied, strided_up)
    assert torch.equal(packed_grad, copied_grad)


@pytest.mark.parametrize("keys", [6, 70])
def test_empty_inputs_give_empty_outputs(keys):
    (q, k, v), _ = given(2, 3, keys, keys, 16)
    for inputs in ((q[:0], k[:0], v[:0]), (q[:, :, :0], k, v)):
        leaves = [x.float().requires_grad_() for x in inputs]
        seen = attended(leaves, BlockMask(), ())
        assert seen.shape == inputs[0].shape
        assert not any(x.any() for x in torch.autograd.grad(seen.sum(), leaves))


def test_dtypes_may_differ_and_the_output_has_that_of_the_queries():
    inputs, angles = given(1, 2, 12, 12, 16)
    q, k, v = inputs
    seen = attended([q.half(), k.float(), v.bfloat16()], BlockMask(), angles)
    assert seen.dtype == torch.float16
    expected = with_mask(reference.attention, BlockMask(), angles)(q, k, v)
    assert torch.allclose(seen.double(), expected, atol=2e-2)


@pytest.mark.parametrize("head", [15, 130])
def test_unsupported_head_dims_are_left_to_pytorch(head):
    inputs, _ = given(1, 2, 12, 12, head)
    q, k, v = (x.float() for x in inputs)
    seen = attended([q, k, v], BlockMask(), ())
    assert torch.equal(seen, eager.attention(q, k, v, BlockMask(), None))


def test_the_kernels_run_with_the_triton_backend(monkeypatch):
    inputs, _ = given(1, 2, 12, 12, 16)
    q, k, v = (x.float() for x in inputs)
    called = []
    monkeypatch.setattr(flash, "attention", lambda *a: called.append(a) or a[0])
    kernels.set_backend("torch")  # auto takes the kernel where it was measured faster
    kernels.attention(q, k, v, BlockMask())
    assert not called
    attended([q, k, v], BlockMask(), ())
    assert len(called) == 1


@pytest.mark.parametrize("keys", [12, 130])
def test_the_operators_are_registered_correctly(keys):
    inputs, angles = given(1, 1, keys, keys, 16)
    q, k, v = (x.float() for x in inputs)
    shape = (*(x.float() for x in angles), 10, 2, True)
    short = keys <= flash.SHORT
    operation = flash_short.short_attention if short else flash.flash_attention
    back = flash_short.short_attention_backward if short else flash.flash_attention_backward
    with triton_kernels():
        leaves = [x.requires_grad_() for x in (q, k, v)]
        torch.library.opcheck(operation, (*leaves, *shape), test_utils=OPCHECKS)
        kept = () if short else operation(*leaves, *shape)
        tensors = [x.detach() for x in (q, q, k, v, *kept)]
        torch.library.opcheck(back, (*tensors, *shape), test_utils=OPCHECKS)


def test_attention_with_a_cache_is_registered_correctly():
    (q, k, v), angles = given(1, 2, 4, 12, 16)
    q, k, v, cosine, sine = (x.float() for x in (q, k, v, *angles))
    given_all = (q, k[:, :, 8:], v[:, :, 8:], k[:, :, :8], v[:, :, :8], cosine, sine, 4, 2, True)
    with triton_kernels():
        operator = flash_short.short_attention_with_cache
        torch.library.opcheck(operator, given_all, test_utils=OPCHECKS[:2])


@needs_gpu
@pytest.mark.parametrize("keys", [48, 1000])
def test_two_runs_agree_to_the_bit(keys):
    inputs, angles = given(2, 9, keys, keys, 64)
    runs = []
    for _ in range(2):
        leaves = [x.to("cuda", torch.bfloat16).requires_grad_() for x in inputs]
        seen = attended(leaves, BlockMask(8), angles)
        runs.append([seen, *torch.autograd.grad(seen.square().sum(), leaves)])
    assert all(torch.equal(x, y) for x, y in zip(*runs, strict=True))


def test_groups_of_sequences_have_equal_sizes():
    k = torch.empty(16, 9, 1024, 64, dtype=torch.bfloat16, device="meta")
    *_, group_size = flash_launch.sizes(k, k)
    assert group_size == 72  # two halves of 144: a small rest would end long after the others
    *_, group_size = flash_launch.sizes(k[:1], k[:1])
    assert group_size == 9
