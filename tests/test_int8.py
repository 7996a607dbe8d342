import pytest
import torch
from torch import nn

from models.int8 import FEW, Int8Linear, quantise_linears
from models.transformer import Transformer, TransformerConfig


@pytest.mark.parametrize("rows", [1, FEW, FEW + 1, 65])
@pytest.mark.parametrize(("wide", "out", "bias"), [(64, 96, True), (704, 33, False), (7, 5, True)])
def test_a_quantised_layer_is_near_the_layer(rows, wide, out, bias):
    torch.manual_seed(0)
    linear = nn.Linear(wide, out, bias=bias)
    x = torch.randn(2, rows, wide)[:, :rows] if rows > FEW else torch.randn(rows, wide)
    exact = linear(x)
    rough = Int8Linear(linear)(x)
    assert rough.shape == exact.shape and rough.dtype == x.dtype
    assert (rough - exact).norm() < 0.04 * exact.norm()
    assert not torch.equal(rough, exact)


def test_a_weight_takes_a_quarter_of_the_bytes():
    kept = Int8Linear(nn.Linear(64, 64, bias=False)).weight
    assert kept.dtype == torch.int8 and kept.numel() == 64 * 64


def test_weights_that_are_whole_numbers_of_their_scale_are_exact():
    linear = nn.Linear(16, 8, bias=False)
    with torch.no_grad():
        linear.weight.copy_(torch.randint(-126, 127, (8, 16)).float())
        linear.weight[:, 0] = 127
    x = torch.randint(-4, 5, (2, 16)).float()  # products and sums that bfloat16 inputs hold
    assert torch.allclose(Int8Linear(linear)(x), linear(x), rtol=1e-2, atol=4.0)


def test_all_linear_layers_of_a_model_are_replaced_and_it_says_nearly_the_same():
    torch.manual_seed(0)
    places = torch.cartesian_prod(torch.arange(2), torch.arange(2)).float()
    model = Transformer(TransformerConfig(32, 2, 2, 48, context=3), places, False).eval()
    x = torch.randn(2, 12, 32)
    with torch.no_grad():
        exact = model(x)[0]
        assert quantise_linears(model) == 2 * 4
        rough = model(x)[0]
    assert not any(type(part) is nn.Linear for part in model.modules())
    assert 0 < (rough - exact).norm() < 0.05 * exact.norm()
