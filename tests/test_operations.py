"""Every operation as a Triton kernel: compiled, and in float64, which no kernel takes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from kernel_checks import PLACES, drawn, outputs_and_gradients, triton_kernels
from torch import Tensor

pytest.importorskip("triton")

import kernels
from kernels import BlockMask, reference

ROWS = 0  # stands for the number of rows in shapes


class Case(NamedTuple):
    run: Callable[..., Any]
    """Runs an operation of the given module on tensors."""
    shapes: list[tuple[int, ...]]
    rows: tuple[int, ...] = (5, 9)
    gradients: bool = True


def angles(x: Tensor) -> tuple[Tensor, Tensor]:
    rows, half = x.shape[-2], x.shape[-1] // 2
    angle = torch.arange(rows, device=x.device)[:, None] + torch.arange(half, device=x.device)
    return angle.to(x).cos(), angle.to(x).sin()


def entropy(module: Any, x: Tensor, weight: Tensor, bias: Tensor, bonus: Tensor) -> Any:
    row = torch.arange(len(x), device=x.device)
    return module.linear_cross_entropy(x, weight, row % 7, bias, row % 5, bonus)


def cached(module: Any, q: Tensor, keys: Tensor, values: Tensor) -> Any:
    bounds = torch.tensor([1, 4], dtype=torch.int32, device=q.device)
    return module.decode_attention(q, keys, values, bounds)


HEADS = (1, 2, ROWS, 16)
OPERATIONS = {
    "rms_norm": Case(lambda m, *given: m.rms_norm(*given), [(ROWS, 24), (24,)]),
    "add_rms_norm": Case(
        lambda m, *given: m.add_rms_norm(*given), [(ROWS, 24), (ROWS, 24), (24,)]
    ),
    "swiglu": Case(lambda m, *given: m.swiglu(*given), [(ROWS, 24)]),
    "apply_rope": Case(lambda m, x: m.apply_rope(x, *angles(x)), [HEADS]),
    # short ones and long ones have kernels of their own
    "attention": Case(
        lambda m, q, k, v: m.attention(q, k, v, BlockMask(), angles(k)), [HEADS] * 3, (9, 12, 70)
    ),
    "attention_with_cache": Case(
        lambda m, q, k, v, *cache: m.attention_with_cache(q, k, v, cache, BlockMask()),
        [HEADS] * 5, gradients=False,
    ),
    "decode_attention": Case(cached, [(1, 2, 3, 16), HEADS, HEADS], gradients=False),
    "linear_cross_entropy": Case(entropy, [(ROWS, 24), (20, 24), (20,), (ROWS,)]),
    "nearest_code": Case(
        lambda m, *given: m.nearest_code(*given), [(ROWS, 16), (20, 16)], gradients=False
    ),
    "gru_step": Case(
        lambda m, *given: m.gru_step(*given), [(ROWS, 24), (ROWS, 8), (24,), (24,)]
    ),
}  # fmt: skip

each_operation = pytest.mark.parametrize("case", OPERATIONS.values(), ids=OPERATIONS)


def given(case: Case, rows: int) -> list[Tensor]:
    """Draw inputs in float64, on the device where kernels run."""
    shapes = [[n or rows for n in shape] for shape in case.shapes]
    return [drawn(*shape, seed=i).to(PLACES[0][0]) for i, shape in enumerate(shapes)]


def test_every_operation_has_a_case():
    known = {name for name in kernels.__all__ if hasattr(reference, name)} - {"BlockMask"}
    assert known == set(OPERATIONS)


@each_operation
def test_compiled_an_operation_gives_the_same(case):
    def run(*inputs):
        found = case.run(kernels, *inputs)
        # relies on the sizes and strides that the fake operators report
        found = (found,) if isinstance(found, Tensor) else found
        return tuple(x.reshape(x.numel()) for x in found)

    torch.compiler.reset()
    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    with triton_kernels(), torch.set_grad_enabled(case.gradients):
        for rows in case.rows:
            inputs = [x.float() for x in given(case, rows)]
            usual, seen = (outputs_and_gradients(f, inputs) for f in (run, compiled))
            assert all(torch.equal(a, b) for a, b in zip(usual, seen, strict=True))


@each_operation
def test_float64_is_left_to_pytorch(case):
    inputs = given(case, 9)
    with torch.set_grad_enabled(case.gradients):
        truth = outputs_and_gradients(partial(case.run, reference), inputs)
        with triton_kernels():
            mine = outputs_and_gradients(partial(case.run, kernels), inputs)
    for exact, seen in zip(truth, mine, strict=True):
        torch.testing.assert_close(seen, exact, rtol=1e-12, atol=1e-12)
