import gc

import pytest
import torch
from torch import nn

from models.layers import int8
from models.layers.int8 import MAX_WEIGHT_ONLY_ROWS, Int8Linear, quantize_linears
from models.layers.transformer import Transformer, TransformerConfig


@pytest.mark.parametrize("rows", [1, MAX_WEIGHT_ONLY_ROWS, MAX_WEIGHT_ONLY_ROWS + 1, 65])
@pytest.mark.parametrize(("wide", "out", "bias"), [(64, 96, True), (704, 33, False), (7, 5, True)])
def test_a_quantized_layer_is_close_to_the_layer(rows, wide, out, bias):
    torch.manual_seed(0)
    linear = nn.Linear(wide, out, bias=bias)
    x = (
        torch.randn(2, rows, wide)[:, :rows]
        if rows > MAX_WEIGHT_ONLY_ROWS
        else torch.randn(rows, wide)
    )
    exact = linear(x)
    rough = Int8Linear(linear)(x)
    assert rough.shape == exact.shape and rough.dtype == x.dtype
    assert (rough - exact).norm() < 0.04 * exact.norm()
    assert not torch.equal(rough, exact)


def test_a_weight_takes_a_quarter_of_the_bytes():
    kept = Int8Linear(nn.Linear(64, 64, bias=False)).weight
    assert kept.dtype == torch.int8 and kept.numel() == 64 * 64


def test_a_large_row_does_not_change_the_error_of_other_rows():
    torch.manual_seed(0)
    linear = nn.Linear(64, 32, bias=False)
    rough, x = Int8Linear(linear), torch.randn(9, 64)
    alone = rough(x)
    x[3] *= 1e4
    x[4] = 0
    together = rough(x)
    others = [0, 1, 2, 5, 6, 7, 8]
    assert torch.equal(together[others], alone[others])
    assert (together[3] - linear(x[3])).norm() < 0.04 * linear(x[3]).norm()
    assert torch.equal(together[4], torch.zeros(32))


@pytest.mark.parametrize("narrow", [False, True])
def test_whole_numbers_are_multiplied_exactly(narrow: bool):
    torch.manual_seed(0)
    rough = Int8Linear(nn.Linear(192, 48, bias=False))
    whole = torch.randint(1, 2 * int8.ZERO_POINT, (70, 192), dtype=torch.uint8)
    exact = int8._float_matmul(whole, rough.weight, rough.scale)
    found = int8._int8_matmul(whole, rough.weight, rough.scale, narrow)
    assert found.dtype == (torch.bfloat16 if narrow else torch.float32)
    assert torch.allclose(found.float(), exact, rtol=8e-3 if narrow else 1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_output_under_autocast_has_the_dtype_of_a_linear_layer(dtype: torch.dtype):
    torch.manual_seed(0)
    linear = nn.Linear(192, 64)
    rough, x = Int8Linear(linear), torch.randn(3, 7, 192, dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        exact, found = linear(x), rough(x)
    assert found.dtype == exact.dtype == torch.bfloat16
    assert (found - exact).norm() < 0.04 * exact.norm()


def test_a_packed_weight_is_freed_with_its_layer():
    rough = Int8Linear(nn.Linear(64, 32, bias=False))
    rough(torch.randn(9, 64))
    rough(torch.randn(8, 64))
    before = len(int8.PACKED)
    assert rough.weight in int8.PACKED
    del rough
    gc.collect()
    assert len(int8.PACKED) == before - 1


def test_weights_that_are_multiples_of_their_scale_are_exact():
    linear = nn.Linear(64, 16, bias=False)
    with torch.no_grad():
        linear.weight.copy_(torch.randint(-126, 127, (16, 64)).float())
        linear.weight[:, 0] = 127
    x = torch.randint(-4, 5, (2, 64)).float()  # products and sums that bfloat16 inputs hold
    assert torch.allclose(Int8Linear(linear)(x), linear(x), rtol=1e-2, atol=4.0)


def test_all_linear_layers_are_replaced_and_the_output_is_close():
    torch.manual_seed(0)
    places = torch.cartesian_prod(torch.arange(2), torch.arange(2)).float()
    model = Transformer(TransformerConfig(32, 2, 2, 48, context_frames=3), places, False).eval()
    x = torch.randn(2, 12, 32)
    with torch.no_grad():
        exact = model(x)[0]
        assert quantize_linears(model) == 2 * 4
        rough = model(x)[0]
    assert not any(type(part) is nn.Linear for part in model.modules())
    assert 0 < (rough - exact).norm() < 0.05 * exact.norm()
