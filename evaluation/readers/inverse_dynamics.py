"""An inverse dynamics model: it predicts the action between two consecutive frames (VPT,
arXiv:2206.11795, section 3), here from those two frames alone, by a small convolutional network.

It measures model rollouts.  It is trained on real frames of training episodes only, and its figures
on real held-out frames are reported next to everything measured with it.

Letters: B videos, T frames, n pairs, F factors of an action, V of them that stand for numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from data.actions import ActionSpec
from models.layers.blocks import ResBlock
from pipeline.device import pick_precision


class IdmNet(nn.Module):
    """Two frames and their difference (n, 9, H, W) -> logits of all factors' labels, (n, L)."""

    def __init__(self, num_labels: int, dim: int = 48) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(9, dim, 8, 4, 2),
            ResBlock(dim),
            nn.Conv2d(dim, 2 * dim, 2, 2),
            ResBlock(2 * dim),
            ResBlock(2 * dim),
            nn.GroupNorm(8, 2 * dim),
        )
        self.head = nn.Sequential(
            nn.Linear(4 * dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, num_labels)
        )

    def forward(self, x: Tensor) -> Tensor:
        features = self.encoder(x).flatten(2)
        # the mean for motion of the whole image, the maximum for motion in a corner
        return self.head(torch.cat([features.mean(2), features.amax(2)], 1))


class InverseDynamics:
    """Videos -> the actions between their frames."""

    def __init__(self, actions: ActionSpec, device: torch.device | str = "cpu") -> None:
        self.actions = actions
        self.device = torch.device(device)
        self.bf16 = pick_precision(self.device, "auto") == "bf16"
        network = IdmNet(sum(actions.factor_sizes)).to(self.device)
        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def logits(self, pairs: Tensor) -> tuple[Tensor, ...]:
        """Give the logits of each factor, (n, labels) float32, for (n, 2, 3, H, W) from 0 to 1."""
        before, after = pairs.unbind(1)
        x = torch.cat([before - 0.5, after - 0.5, after - before], 1)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            out = self.network(x.contiguous(memory_format=torch.channels_last))
        return out.float().split(self.actions.factor_sizes, 1)

    def preprocess(self, pairs: Tensor) -> Tensor:
        """Scale (n, 2, 3, H, W) uint8 to 0 to 1, on the device."""
        return pairs.to(self.device).float() / 255

    @torch.inference_mode()
    def predict(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Predict from (B, T, 3, H, W) uint8 the most likely choices (B, T - 1, F) and the expected
        values (B, T - 1, V) of the factors that stand for numbers."""
        pairs = torch.stack([frames[:, :-1], frames[:, 1:]], 2)
        choices, values = [], []
        for part in pairs.flatten(0, 1).split(256):
            logits = self.logits(self.preprocess(part))
            choices.append(torch.stack([one.argmax(1) for one in logits], 1))
            expected = [
                one.softmax(1) @ one.new_tensor(factor.values)
                for one, factor in zip(logits, self.actions.factors, strict=True)
                if factor.values
            ]
            values.append(
                torch.stack(expected, 1) if expected else logits[0].new_zeros(len(part), 0)
            )
        shape = pairs.shape[:2]
        return torch.cat(choices).unflatten(0, shape), torch.cat(values).unflatten(0, shape)
