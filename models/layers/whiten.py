"""Images as a retina sends them on: one channel of light, two of color, and local differences
louder than what neighbors share (Atick and Redlich, doi:10.1162/neco.1992.4.2.196).

In photographs, brightness varies more than hue, and wide areas more than edges.  An encoder over
raw pixels hears little of the rest, above all at the start of its training.

Letters: B images, H W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.layers.image_filter import filter_images, gaussian

COLOR_GAIN = 3.0  # of both color axes, against light
DETAIL_GAIN = 8.0  # of what differs from its surroundings
SIGMA, RADIUS = 1.0, 2  # of the surroundings, in pixels

# Luma and two color axes of NTSC, in which a hue is an angle.
TO_YIQ = torch.tensor(
    [[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]],
    device="cpu",  # also where a model is made on the meta device while this is imported
)


def whiten(images: Tensor) -> Tensor:
    """(B, 3, H, W) RGB from 0 to 1 -> (B, 3, H, W) about zero; linear, and nothing is lost."""
    gains = images.new_tensor([1.0, COLOR_GAIN, COLOR_GAIN])[:, None]
    with torch.autocast(images.device.type, enabled=False):  # differences of near numbers
        channels = torch.einsum("dc,bchw->bdhw", gains * TO_YIQ.to(images), 4 * images - 2)
        surroundings = filter_images(channels, gaussian(channels.new_tensor([SIGMA]), RADIUS))
        # channels + DETAIL_GAIN * (channels - surroundings), in one pass over memory
        return torch.lerp(surroundings, channels, 1 + DETAIL_GAIN)
