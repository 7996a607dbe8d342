"""The moving average of a run's weights, which is validated and handed on."""

from __future__ import annotations

from torch import Tensor, nn


class Average:
    """Follows the trained weights of `model`; all else in its state is as it is there."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay = model, decay
        self.weights: dict[str, Tensor] = {
            name: value.detach().clone() for name, value in model.state_dict().items()
        }
        self._trained = {n for n, p in model.named_parameters() if p.requires_grad}

    def follow(self, step: int) -> None:
        if not self.decay:
            return
        # a short memory at first, or the random start would weigh on it for long
        decay = min(self.decay, (step + 1) / (step + 10))
        for name, value in self.model.state_dict().items():
            if name in self._trained:
                self.weights[name].lerp_(value.detach(), 1 - decay)
            else:
                self.weights[name].copy_(value)
