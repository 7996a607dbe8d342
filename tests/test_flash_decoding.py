"""Attention to a static cache by Triton kernels, at any bounds."""

import pytest
import torch
from kernel_checks import drawn, each_place, needs_gpu, triton_kernels

import kernels
from kernels import eager, reference

pytest.importorskip("triton")

from kernels import flash_decoding

# batch, heads, queries, capacity, head dim
SIZES = [
    (1, 2, 1, 300, 16),
    (1, 9, 5, 100, 24),
    (1, 1, 70, 130, 32),
    (1, 9, 1, 140, 64),
    (1, 2, 3, 140, 80),
    (1, 1, 2, 200, 128),
]


def given(batch, heads, queries, capacity, head):
    """Draw queries, keys and values."""
    lengths = (queries, capacity, capacity)
    return [drawn(batch, heads, n, head, seed=n + i) for i, n in enumerate(lengths)]


def attended(inputs, low, high):
    q, keys, values = inputs
    with triton_kernels():
        bounds = torch.tensor([low, high], dtype=torch.int32, device=q.device)
        return kernels.decode_attention(q, keys, values, bounds)


def one_by_one(inputs, bounds):
    """Compute the definition query by query."""
    q, keys, values = inputs
    return torch.cat(
        [reference.decode_attention(x, keys, values, bounds) for x in q.split(1, 2)], 2
    )


@each_place
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("bounds", [(0, None), (7, 53), (40, 41)])
def test_attention_to_a_cache_is_as_near_as_torch(sizes, bounds, place):
    device, dtype = place
    inputs = [x.to(device, dtype) for x in given(*sizes)]
    low, high = bounds[0], bounds[1] or sizes[3]
    within = torch.tensor([low, high], dtype=torch.int32)
    exact = one_by_one([x.double() for x in inputs], within)
    allowed = (one_by_one(inputs, within).double() - exact).abs().max()
    slack = 4 * torch.finfo(dtype).eps * exact.abs().max().clamp(min=1)
    seen = attended(inputs, low, high)
    assert seen.dtype == dtype and seen.shape == exact.shape
    assert (seen.double() - exact).abs().max() <= allowed + slack


def test_rows_out_of_bounds_may_hold_anything():
    q, keys, values = (x.float() for x in given(1, 1, 3, 200, 16))
    expected = attended([q, keys, values], 33, 150)
    for x in (keys, values):
        x[:, :, :33] = x[:, :, 150:] = float("nan")
    assert torch.equal(attended([q, keys, values], 33, 150), expected)


def test_an_empty_cache_gives_nothing():
    q, keys, values = (x.float() for x in given(1, 1, 3, 200, 16))
    assert not attended([q, keys, values], 5, 5).any()
    assert attended([q[:0], keys[:0], values[:0]], 0, 9).shape == (0, 1, 3, 16)


def test_the_parts_of_a_cache_combine_to_the_whole(monkeypatch):
    q, keys, values = (x.float() for x in given(1, 1, 3, 300, 16))
    assert flash_decoding.split_cache(1, 3, 300, 4).parts > 1
    parts = [attended([q, keys, values], 10, high) for high in (20, 300)]
    monkeypatch.setattr(flash_decoding, "PROGRAMS", 1)
    assert flash_decoding.split_cache(1, 3, 300, 4).parts == 1
    whole = [attended([q, keys, values], 10, high) for high in (20, 300)]
    assert torch.allclose(torch.cat(parts), torch.cat(whole), atol=1e-6)


def test_caches_may_be_strided_and_of_other_dtypes():
    inputs = given(2, 1, 3, 100, 16)
    expected = one_by_one(inputs, torch.tensor([4, 90], dtype=torch.int32))
    strided = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in inputs]
    strided[2] = inputs[2].transpose(2, 3).contiguous().transpose(2, 3)
    q, keys, values = strided
    seen = attended([q.half(), keys.float(), values.float()], 4, 90)
    assert seen.dtype == torch.float16
    assert torch.allclose(seen.double(), expected, atol=2e-3)


@pytest.mark.parametrize("head", [15, 130])
def test_unsupported_head_dims_are_left_to_pytorch(head):
    q, keys, values = (x.float() for x in given(1, 2, 3, 50, head))
    bounds = torch.tensor([4, 40], dtype=torch.int32)
    expected = eager.decode_attention(q, keys, values, bounds)
    # a product's last bits depend on where its operands lie in memory
    assert torch.allclose(attended([q, keys, values], 4, 40), expected, atol=1e-6)


def test_the_kernel_runs_with_the_triton_backend(monkeypatch):
    q, keys, values = (x.float() for x in given(1, 2, 3, 50, 16))
    called = []
    monkeypatch.setattr(flash_decoding, "decode_attention", lambda *a: called.append(a) or a[0])
    kernels.set_backend("torch")  # auto takes the kernel where it was measured faster
    kernels.decode_attention(q, keys, values, torch.tensor([4, 40], dtype=torch.int32))
    assert not called
    attended([q, keys, values], 4, 40)
    assert len(called) == 1


def test_the_operator_is_registered_correctly():
    inputs = [x.float() for x in given(1, 2, 3, 150, 16)]
    bounds = torch.tensor([4, 40], dtype=torch.int32)
    torch.library.opcheck(
        flash_decoding.decode_attention_operation, (*inputs, bounds),
        test_utils=("test_schema", "test_faketensor", "test_autograd_registration"),
    )  # fmt: skip


@needs_gpu
def test_one_cuda_graph_serves_every_length():
    q, keys, values = (x.to("cuda", torch.bfloat16) for x in given(1, 9, 1, 1024, 64))
    bounds = torch.tensor([0, 1], dtype=torch.int32, device="cuda")
    with triton_kernels():
        kernels.decode_attention(q, keys, values, bounds)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            seen = kernels.decode_attention(q, keys, values, bounds)
        for low, high in ((0, 3), (100, 1024), (17, 18)):
            bounds.copy_(torch.tensor([low, high]))
            graph.replay()
            expected = reference.decode_attention(q, keys, values, bounds)
            assert torch.allclose(seen, expected, atol=2e-2)


@needs_gpu
def test_two_runs_agree_to_the_bit():
    inputs = [x.to("cuda", torch.bfloat16) for x in given(2, 9, 1, 1000, 64)]
    assert torch.equal(attended(inputs, 3, 900), attended(inputs, 3, 900))
