"""Encoders of the user's own, as models/tokenizers/own_encoder.py asks for them, and some that are
not."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from data.io.messages import one_line


class Patches(nn.Module):
    """The mean color of each patch of 8 pixels, mixed; a token for the image before them."""

    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    patch_size, num_prefix_tokens = 8, 1

    def __init__(self, pretrained: bool) -> None:
        super().__init__()
        self.mix = nn.Linear(3, 6)
        if pretrained:
            with torch.no_grad():
                self.mix.weight.copy_(torch.arange(18.0).view(6, 3) / 18)
                self.mix.bias.zero_()

    def forward(self, pixels: Tensor) -> Tensor:
        patches = nn.functional.avg_pool2d(pixels, 8).flatten(2).transpose(1, 2)
        return self.mix(torch.cat([patches.mean(1, keepdim=True), patches], 1))


class Map(Patches):
    """The same as a map."""

    def forward(self, pixels: Tensor) -> Tensor:
        return (
            super().forward(pixels)[:, 1:].transpose(1, 2).unflatten(2, (pixels.shape[2] // 8, -1))
        )


class Forgetful(Map):
    """Its weights are others each time."""

    def __init__(self, pretrained: bool) -> None:
        super().__init__(False)


class Broken(nn.Module):
    def __init__(self, pretrained: bool) -> None:
        raise OSError("no weights\nare here")


class Misses(Patches):
    """A token less than it says."""

    def forward(self, pixels: Tensor) -> Tensor:
        return super().forward(pixels)[:, 1:]


class Tuples(Patches):
    def forward(self, pixels: Tensor) -> tuple[Tensor]:  # type: ignore[override]
        return (super().forward(pixels),)


class TwoMeans(Patches):
    mean = (0.5, 0.5)  # type: ignore[assignment]


class Exits(Patches):
    def __init__(self, pretrained: bool) -> None:
        raise SystemExit("no license")


class Raises(Map):
    def forward(self, pixels: Tensor) -> Tensor:
        raise RuntimeError("no kernel\nof this size")


class FirstOnly(Map):
    """One row, however many images there are."""

    def forward(self, pixels: Tensor) -> Tensor:
        return super().forward(pixels)[:1]


class Integers(Map):
    def forward(self, pixels: Tensor) -> Tensor:
        return super().forward(pixels).long()


class Halves(Map):
    def forward(self, pixels: Tensor) -> Tensor:
        return super().forward(pixels).half()


class NoRows(Map):
    def forward(self, pixels: Tensor) -> Tensor:
        return super().forward(pixels)[:, :, :0]


class TextPatch(Patches):
    patch_size = "8"  # type: ignore[assignment]


class OneInfinity(Map):
    def forward(self, pixels: Tensor) -> Tensor:
        found = super().forward(pixels).clone()
        found[0, 0, 0, 0] = float("inf")
        return found


class NoSpread(Patches):
    std = (0.0, 1.0, 1.0)


class NanMean(Patches):
    mean = (0.5, 0.5, float("nan"))


not_a_module = one_line


class Dice(nn.Module):
    """Adds noise, also in eval mode."""

    def __init__(self, pretrained: bool) -> None:
        super().__init__()

    def forward(self, pixels: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(pixels, 8) + 0.1 * torch.randn(len(pixels), 3, 1, 1)
