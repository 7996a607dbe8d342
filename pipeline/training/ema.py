"""The moving average of a run's weights, which is validated and handed on."""

from __future__ import annotations

from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


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
        now = self.model.state_dict()
        trained = [name for name in now if name in self._trained]
        # all at once: on a GPU a launch for each takes longer than a recorded step
        average = get_ema_multi_avg_fn(decay)
        average([self.weights[name] for name in trained], [now[name] for name in trained], 0)
        for name in now.keys() - self._trained:
            self.weights[name].copy_(now[name])
