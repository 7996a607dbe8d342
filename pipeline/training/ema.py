"""The moving average of the trained weights, which is validated and handed on."""

from __future__ import annotations

from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Ema:
    """Averages the trained weights of `model`; what is not trained has no average."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay = model, decay
        self.weights: dict[str, Tensor] = {
            name: value.detach().clone()
            for name, value in model.named_parameters()
            if value.requires_grad
        }

    def update(self, step: int) -> None:
        """Move towards the weights as they are after step `step`."""
        if not self.decay:
            return
        # a short memory at first, or the random start would weigh on it for long
        decay = min(self.decay, (step + 1) / (step + 10))
        current = dict(self.model.named_parameters())
        # all at once: on a GPU a launch for each takes longer than a captured step
        ema_update = get_ema_multi_avg_fn(decay)
        ema_update([*self.weights.values()], [current[name].data for name in self.weights], 0)

    def state_dict(self) -> dict[str, Tensor]:
        """The model's state with averaged weights, where they are averaged."""
        state = self.model.state_dict()
        return state | self.weights if self.decay else state
