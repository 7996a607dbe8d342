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
from kernels import View, reference

ROWS = 0  # stands in shapes for how many there are


class Case(NamedTuple):
    run: Callable[..., Any]
    """An operation of the module given first, on tensors."""
    shapes: list[tuple[int, ...]]
    rows: tuple[int, ...] = (5, 9)
    gradients: bool = True


def angles(x: Tensor) -> tuple[Tensor, Tensor]:
    rows, half = x.shape[-2], x.shape[-1] // 2
    turns = torch.arange(rows, device=x.device)[:, None] + torch.arange(half, device=x.device)
    return turns.to(x).cos(), turns.to(x).sin()


def entropy(module: Any, x: Tensor, weight: Tensor, bias: Tensor, bonus: Tensor) -> Any:
    row = torch.arange(len(x), device=x.device)
    return module.linear_cross_entropy(x, weight, row % 7, bias, row % 5, bonus)


def cached(module: Any, q: Tensor, keys: Tensor, values: Tensor) -> Any:
    bounds = torch.tensor([1, 4], dtype=torch.int32, device=q.device)
    return module.attend_cache(q, keys, values, bounds)


HEADS = (1, 2, ROWS, 16)
OPERATIONS = {
    "rms_norm": Case(lambda m, *given: m.rms_norm(*given), [(ROWS, 24), (24,)]),
    "add_rms_norm": Case(
        lambda m, *given: m.add_rms_norm(*given), [(ROWS, 24), (ROWS, 24), (24,)]
    ),
    "swiglu": Case(lambda m, *given: m.swiglu(*given), [(ROWS, 24)]),
    "rotate": Case(lambda m, x: m.rotate(x, *angles(x)), [HEADS]),
    # short ones and long ones have kernels of their own
    "attention": Case(
        lambda m, q, k, v: m.attention(q, k, v, View(), angles(k)), [HEADS] * 3, (9, 12, 70)
    ),
    "attention_after": Case(
        lambda m, q, k, v, *past: m.attention_after(q, k, v, past, View()), [HEADS] * 5,
        gradients=False,
    ),
    "attend_cache": Case(cached, [(1, 2, 3, 16), HEADS, HEADS], gradients=False),
    "linear_cross_entropy": Case(entropy, [(ROWS, 24), (20, 24), (20,), (ROWS,)]),
    "assign": Case(lambda m, *given: m.assign(*given), [(ROWS, 16), (20, 16)], gradients=False),
    "gru_step": Case(
        lambda m, *given: m.gru_step(*given), [(ROWS, 24), (ROWS, 8), (24,), (24,)]
    ),
}  # fmt: skip

each_operation = pytest.mark.parametrize("case", OPERATIONS.values(), ids=OPERATIONS)


def given(case: Case, rows: int) -> list[Tensor]:
    """Inputs in float64, where kernels run."""
    shapes = [[n or rows for n in shape] for shape in case.shapes]
    return [drawn(*shape, seed=i).to(PLACES[0][0]) for i, shape in enumerate(shapes)]


def test_no_operation_is_forgotten():
    known = {name for name in kernels.__all__ if hasattr(reference, name)} - {"View"}
    assert known == set(OPERATIONS)


@each_operation
def test_compiled_an_operation_gives_the_same(case):
    def run(*inputs):
        found = case.run(kernels, *inputs)
        # by the sizes and strides that the compiler was told of
        found = (found,) if isinstance(found, Tensor) else found
        return tuple(x.reshape(x.numel()) for x in found)

    torch.compiler.reset()
    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    with triton_kernels(), torch.set_grad_enabled(case.gradients):
        for rows in case.rows:
            inputs = [x.float() for x in given(case, rows)]
            usual, seen = (outputs_and_gradients(way, inputs) for way in (run, compiled))
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
