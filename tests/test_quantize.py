"""Nearest rows of a codebook, counts and sums, against the definition in float64."""

import pytest
import torch
from kernel_checks import drawn, each_place, needs_gpu, triton_kernels

pytest.importorskip("triton")

import kernels
from kernels import quantize, reference

SIZES = [(500, 33, 64), (1, 1, 5), (130, 70, 16), (70, 129, 96), (65, 20, 576), (33, 10, 200)]


def assigned(vectors, book):
    with triton_kernels():
        return kernels.nearest_code(vectors, book)


def check_sums(vectors, book, codes, counts, sums):
    """Check counts and sums against their codes."""
    assert torch.equal(counts, torch.bincount(codes, minlength=len(book)))
    exact = torch.zeros_like(book, dtype=torch.float64).index_add(0, codes, vectors.double())
    assert sums.dtype == torch.float32 and sums.shape == book.shape
    assert (sums - exact).abs().max() <= 1e-5 * exact.abs().max().clamp(min=1)


def distances(vectors, book):
    """Compute |e|^2 - 2 v e in float64: (R, K)."""
    vectors, book = vectors.double(), book.double()
    return book.square().sum(-1) - 2 * vectors @ book.T


@each_place
@pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
def test_codes_are_the_nearest_but_for_ties_in_float32(size, place):
    (rows, entries, width), (device, dtype) = size, place
    vectors, book = drawn(rows, width).to(device, dtype), drawn(entries, width, seed=1).to(device)
    codes, counts, sums = assigned(vectors, book.float())
    assert codes.shape == (rows,) and codes.dtype == torch.int64
    far = distances(vectors, book.float())
    worse = far.gather(1, codes[:, None])[:, 0] - far.min(dim=1).values
    # a tensor core adds sixteen products at a time and rounds
    roundings = 4 + width / 16
    assert worse.max() <= roundings * torch.finfo(torch.float32).eps * far.abs().max()
    assert (codes == far.argmin(1)).float().mean() > 0.99
    check_sums(vectors, book.float(), codes, counts, sums)


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1e8])
def test_codes_do_not_depend_on_the_scale(scale):
    vectors, book = drawn(90, 24, scale=scale), drawn(50, 24, seed=1, scale=scale)
    vectors, book = vectors.float(), book.float()
    codes, _, sums = assigned(vectors, book)
    assert torch.equal(codes, distances(vectors, book).argmin(1))
    exact = reference.nearest_code(vectors.double(), book.double())[2]
    assert (sums - exact).abs().max() <= 1e-5 * exact.abs().max()


def test_products_of_single_float16_would_find_other_codes():
    # rows of the codebook that differ by three thousandths
    book = 1 + 3e-3 * drawn(64, 32)
    vectors = book[torch.arange(100) % 64].float()
    book = book.float()
    truth = distances(vectors, book).argmin(1)
    length = book.double().square().sum(-1)
    rough = (length - 2 * vectors.half().double() @ book.half().double().T).argmin(1)
    assert (rough != truth).float().mean() > 0.5
    assert torch.equal(assigned(vectors, book)[0], truth)


def test_of_equals_the_lowest_index_wins_as_in_argmin():
    # whole numbers: their products are exact in whatever order they are summed
    book = drawn(9, 8, scale=3).round().float().repeat(9, 1)
    vectors = drawn(40, 8, seed=1, scale=3).round().float()
    codes = assigned(vectors, book)[0]
    assert torch.equal(codes, distances(vectors, book[:9]).argmin(1))
    assert assigned(torch.zeros_like(vectors), torch.zeros_like(book))[0].eq(0).all()


def test_all_vectors_on_one_code_are_counted_and_summed():
    book = drawn(20, 16).float()
    vectors = book[7] + 1e-3 * drawn(700, 16, seed=1).float()
    codes, counts, sums = assigned(vectors, book)
    assert codes.eq(7).all() and counts[7] == 700 and counts.sum() == 700
    check_sums(vectors, book, codes, counts, sums)
    assert sums[[c for c in range(20) if c != 7]].eq(0).all()


def test_a_vector_that_is_not_finite_does_not_affect_others():
    vectors, book = drawn(70, 16).float(), drawn(30, 16, seed=1).float()
    truth = distances(vectors, book).argmin(1)
    vectors[3, 2], vectors[9] = float("inf"), float("nan")
    codes, counts, _ = assigned(vectors, book)
    sound = [r for r in range(70) if r not in (3, 9)]
    assert torch.equal(codes[sound], truth[sound]) and counts.sum() == 70
    assert codes.min() >= 0 and codes.max() < 30


def test_vectors_may_be_none_or_strided():
    book = drawn(30, 16).float()
    codes, counts, sums = assigned(torch.empty(0, 16), book)
    assert codes.shape == (0,) and counts.eq(0).all() and sums.eq(0).all()
    strided = drawn(16, 50, seed=1).float().T.requires_grad_()
    codes, counts, sums = assigned(strided, book)
    assert torch.equal(codes, distances(strided.detach(), book).argmin(1))
    assert not sums.requires_grad


def test_the_public_function_runs_the_kernel(monkeypatch):
    monkeypatch.setattr(quantize, "nearest_code", lambda vectors, codebook: "the kernel")
    vectors, book = torch.ones(2, 4), torch.ones(3, 4)
    assert assigned(vectors, book) == "the kernel"
    kernels.set_backend("torch")
    try:
        assert kernels.nearest_code(vectors, book) != "the kernel"
    finally:
        kernels.set_backend("auto")


def test_the_operator_is_registered_correctly():
    vectors, book = torch.ones(5, 4), torch.eye(4)
    torch.library.opcheck(
        torch.ops.dreamstage.nearest_code.default,
        (vectors, book),
        test_utils=("test_schema", "test_faketensor", "test_autograd_registration"),
    )


@needs_gpu
def test_two_runs_agree_to_the_bit_and_no_matrix_of_distances_is_made():
    rows, entries, width = 65_536, 1024, 128
    vectors, book = torch.randn(rows, width), torch.randn(entries, width)
    first = assigned(vectors, book)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    second = assigned(vectors, book)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.cuda.max_memory_allocated() - before < rows * entries * 4 / 20
