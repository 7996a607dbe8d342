import torch
from torch import nn

from pipeline.training.train_step import Ema


class Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trained = nn.Parameter(torch.zeros(()))
        self.frozen = nn.Parameter(torch.zeros(()), requires_grad=False)
        self.register_buffer("count", torch.zeros((), dtype=torch.long))


def count_up(decay: float, steps: int) -> Ema:
    """An average of weights that are s + 1 after step s."""
    model = Counts()
    ema = Ema(model, decay)
    for step in range(steps):
        for value in model.state_dict().values():
            value.fill_(step + 1)
        ema.update(step)
    return ema


def test_trained_weights_are_averaged_and_all_else_is_the_models():
    ema = count_up(decay=0.9, steps=400)
    state = ema.state_dict()
    assert state.keys() == {"trained", "frozen", "count"} and ema.weights.keys() == {"trained"}
    assert state["frozen"] == state["count"] == 400
    assert torch.allclose(state["trained"], torch.tensor(391.0))  # a ramp lags by d / (1 - d)


def test_the_memory_is_short_at_first():
    state = count_up(decay=0.99, steps=9).state_dict()
    assert state["trained"] > 6  # at 0.99 from the start it would be 0.4


def test_without_a_decay_the_weights_themselves_are_handed_on():
    ema = count_up(decay=0.0, steps=3)
    assert set(map(float, ema.state_dict().values())) == {3.0}
    assert not any(ema.weights.values())  # no time is spent on an average
