import torch
from torch import nn

from models.layout import lay_out_for_imagining


def test_weights_lie_by_columns_and_are_what_they_were():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 5, bias=False))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.randn(3, 8)
    exact = model(x)
    lay_out_for_imagining(model)
    assert model[0].weight.stride() == (1, 6) and model[2].weight.stride() == (1, 5)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.allclose(model(x), exact, atol=1e-6)
    loaded = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 5, bias=False))
    loaded.load_state_dict(model.state_dict())
    assert torch.equal(loaded[0].weight, before["0.weight"])
