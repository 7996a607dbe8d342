import torch
from torch import nn

from pipeline.training.ema import Ema


class Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trained = nn.Parameter(torch.zeros(()))
        self.frozen = nn.Parameter(torch.zeros(()), requires_grad=False)
        self.register_buffer("count", torch.zeros((), dtype=torch.long))


def follow(decay: float, steps: int) -> dict[str, torch.Tensor]:
    model = Counts()
    average = Ema(model, decay)
    for step in range(steps):
        for value in model.state_dict().values():
            value.fill_(step + 1)
        average.update(step)
    return average.weights


def test_trained_weights_are_averaged_and_all_else_is_copied():
    weights = follow(decay=0.9, steps=400)
    assert weights["frozen"] == weights["count"] == 400
    assert torch.allclose(weights["trained"], torch.tensor(391.0))  # a ramp lags by d / (1 - d)


def test_the_memory_is_short_at_first():
    weights = follow(decay=0.99, steps=9)
    assert weights["trained"] > 6  # at 0.99 from the start it would be 0.4


def test_without_a_decay_nothing_is_followed():
    assert not any(follow(decay=0.0, steps=3).values())
