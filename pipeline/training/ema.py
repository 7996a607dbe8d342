"""The moving average of a run's weights, which is validated and handed on."""

from __future__ import annotations

from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Ema:
    """Follows the trained weights of `model`; all else in its state is as it is there."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay = model, decay
        self.weights: dict[str, Tensor] = {
            name: value.detach().clone() for name, value in model.state_dict().items()
        }
        self._trainable = {n for n, p in model.named_parameters() if p.requires_grad}

    def update(self, step: int) -> None:
        if not self.decay:
            return
        # a short memory at first, or the random start would weigh on it for long
        decay = min(self.decay, (step + 1) / (step + 10))
        current = self.model.state_dict()
        trainable = [name for name in current if name in self._trainable]
        # all at once: on a GPU a launch for each takes longer than a recorded step
        ema_update = get_ema_multi_avg_fn(decay)
        ema_update(
            [self.weights[name] for name in trainable], [current[name] for name in trainable], 0
        )
        for name in current.keys() - self._trainable:
            self.weights[name].copy_(current[name])
