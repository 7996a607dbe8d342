import torch

from models.layers.heads import TwoHot


def test_the_first_prediction_is_zero():
    assert TwoHot(4)(torch.randn(5, 4)).abs().max() < 1e-3


def test_the_loss_is_lowest_where_the_prediction_is_the_target():
    torch.manual_seed(0)
    head = TwoHot(8)
    x = torch.eye(8)
    target = torch.tensor([0.0, 0.1, 0.5, 1.0, -2.0, 3.0, 5.0, 0.77])
    optimizer = torch.optim.Adam(head.parameters(), 0.1)
    for _ in range(400):
        optimizer.zero_grad()
        head.loss(x, target).mean().backward()
        optimizer.step()
    assert torch.allclose(head(x), target, rtol=0.05, atol=0.02)
