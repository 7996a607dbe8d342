from contextlib import nullcontext

import pytest
import torch
from kernel_checks import triton_kernels

from kernels import reference
from models.layers.block_gru import BlockGru, BlockLinear


def test_a_block_reads_no_other_block():
    layer = BlockLinear(4, 3, 5)
    x = torch.randn(2, 4, 3)
    before = layer(x)
    assert torch.allclose(before[:, 1], x[:, 1] @ layer.weight[1], atol=1e-6)
    x[:, 2] += 1
    changed = (layer(x) != before).any(-1).any(0)
    assert changed.tolist() == [False, False, True, False]


def test_a_step_is_the_definition_of_its_gates_block_by_block():
    torch.manual_seed(0)
    gru = BlockGru(12, 7, 3)
    torch.nn.init.normal_(gru.gate_bias)
    x, state = torch.randn(2, 7), torch.randn(2, 12)
    mixed = gru.input_layer(x)
    for block in range(3):
        own = slice(4 * block, 4 * block + 4)
        mixed[:, own] += state[:, own] @ gru.state_layer.weight[block]
    mixed = torch.nn.functional.silu(gru.norm(mixed))
    after = gru(x, state)
    for block in range(3):
        own = slice(4 * block, 4 * block + 4)
        parts = mixed[:, own] @ gru.gates.weight[block] + gru.gate_bias[block]
        assert torch.allclose(after[:, own], reference.gru_step(parts, state[:, own]), atol=1e-5)


def test_the_state_keeps_its_float32_under_autocast():
    gru = BlockGru(16, 8, 2)
    with torch.autocast("cpu", torch.bfloat16):
        after = gru(torch.randn(3, 8), torch.randn(3, 16))
    assert after.dtype == torch.float32


def test_a_state_stays_within_one():
    gru = BlockGru(16, 8, 2)
    state = torch.zeros(4, 16)
    for _ in range(50):
        state = gru(10 * torch.randn(4, 8), state)
    assert state.abs().max() <= 1


def test_the_kernel_of_the_gates_takes_its_blocks_as_they_lie():
    pytest.importorskip("kernels.recurrent")
    torch.manual_seed(0)
    gru = BlockGru(12, 7, 3)
    inputs = torch.randn(2, 7, requires_grad=True), torch.randn(2, 12, requires_grad=True)
    found = []
    for backend in (nullcontext, triton_kernels):
        with backend():
            after = gru(*inputs)
            found.append((after, *torch.autograd.grad(after.square().sum(), inputs)))
    for one, two in zip(*found, strict=True):
        assert torch.allclose(one, two, atol=1e-5)
