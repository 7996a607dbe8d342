"""Views of images: color jitter, blur, grayscale, solarize, crop and flip, each by its own numbers.

A view is 16 numbers, and what they say is what is applied; 0 in all of them changes nothing.

| Slot | Number |
|---|---|
| 0, 1, 2 | factors of brightness, contrast and saturation, less 1 |
| 3 | rotation of hue, in turns |
| 4 | standard deviation of the blur, in hundredths of the image's height |
| 5, 6 | 1 where the image is made gray, 1 where it is solarized |
| 7, 8 | x and y of the crop's middle, from -1 to 1 |
| 9 | logarithm of the crop's side, as a share of the image's |
| 10 | 1 where it is mirrored |
| 11 to 15 | 0 |

Strengths and probabilities are BYOL's and IWM's (arXiv:2006.07733, arXiv:2403.00504).

Letters: B images, H W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from models.layers.image_filter import filter_images, gaussian
from models.layers.whiten import TO_YIQ

SLOTS = 16
BRIGHTNESS, CONTRAST, SATURATION, HUE, BLUR, GRAY, SOLARIZE, X, Y, LOG_SIDE, FLIP = range(11)
FACTORS = slice(0, 3)
PHOTOMETRIC = slice(0, 7)
GEOMETRIC = slice(7, 11)
JITTER = (0.4, 0.4, 0.2, 0.1)
JITTER_PROB, BLUR_PROB, GRAY_PROB, SOLARIZE_PROB = 0.8, 0.2, 0.2, 0.2
MAX_BLUR = 2.0  # hundredths of the height: 4.5 pixels of 224
MIN_CROP_SIDE = 0.6  # of a crop
LEAST_FACTOR = 0.1  # by which an action divides; the strongest jitter draws factors down to 0
LARGEST = (*JITTER, MAX_BLUR, 1.0, 1.0, *[1 - MIN_CROP_SIDE] * 2, -math.log(MIN_CROP_SIDE), 1.0)
"""What is drawn at most in each slot that is used."""

Transformation = Literal["jitter", "blur", "grayscale", "solarize", "crop"]
Draw = Callable[[Tensor], Tensor]
TRANSFORMATIONS: tuple[Transformation, ...] = ("jitter", "blur", "grayscale", "solarize", "crop")

_FROM_YIQ = torch.linalg.inv(TO_YIQ)


def draw_jitter(views: Tensor, strength: float = 1.0, prob: float = JITTER_PROB) -> Tensor:
    """Fill the first four slots of (B, 16), with `prob` in each row."""
    limits = views.new_tensor(JITTER) * strength
    drawn = (2 * torch.rand_like(views[:, :4]) - 1) * limits
    views[:, :4] = drawn * (torch.rand_like(views[:, :1]) < prob)
    return views


def draw_destructive(
    views: Tensor, blur: float = BLUR_PROB, gray: float = GRAY_PROB, solarize: float = SOLARIZE_PROB
) -> Tensor:
    """Fill the slots of blur, grayscale and solarize, each with its probability."""
    chance = torch.rand_like(views[:, :3])
    sigma = MAX_BLUR * (0.1 + 0.9 * torch.rand_like(views[:, 0]))
    views[:, BLUR] = sigma * (chance[:, 0] < blur)
    views[:, GRAY] = (chance[:, 1] < gray).to(views.dtype)
    views[:, SOLARIZE] = (chance[:, 2] < solarize).to(views.dtype)
    return views


def draw_crop(views: Tensor, prob: float, min_side: float = MIN_CROP_SIDE) -> Tensor:
    """Fill the slots of a crop inside the image, and of its mirroring."""
    cropped = (torch.rand_like(views[:, 0]) < prob).to(views.dtype)
    side = 1 - (1 - min_side) * torch.rand_like(views[:, 0]) * cropped
    room = (1 - side)[:, None]  # of the middle, to each side
    views[:, X : Y + 1] = (2 * torch.rand_like(views[:, :2]) - 1) * room
    views[:, LOG_SIDE] = side.log()
    views[:, FLIP] = (torch.rand_like(views[:, 0]) < 0.5 * cropped).to(views.dtype)
    return views


def draw_photometric(views: Tensor) -> Tensor:
    """Fill (B, 16) zeros with jitter, and with blur, grayscale and solarize now and then.

    All rows are jittered, so that no two candidates of a ranking are the same image.
    """
    return draw_destructive(draw_jitter(views, prob=1.0))


def draw(views: Tensor, kind: Transformation) -> Tensor:
    """Fill (B, 16) zeros with one kind of transformation, none of them left out.

    What has no strength of its own (grayscale, solarize) comes with jitter, and so does blur.
    """
    if kind == "crop":
        return draw_crop(views, 1.0)
    draw_jitter(views, prob=1.0)
    if kind == "jitter":
        return views
    return draw_destructive(
        views, float(kind == "blur"), float(kind == "grayscale"), float(kind == "solarize")
    )


def apply(images: Tensor, views: Tensor) -> Tensor:
    """Crop and mirror, jitter, make gray, blur, solarize: (B, 3, H, W) from 0 to 1, (B, 16)."""
    with torch.autocast(images.device.type, enabled=False):  # a pixel has more digits than bf16
        return photometric(crop(images, views), views)


def crop(images: Tensor, views: Tensor) -> Tensor:
    """Sample the crops, as large as the images: (B, 3, H, W), (B, 16)."""
    theta = images.new_zeros(len(images), 2, 3)
    side = views[:, LOG_SIDE].exp()
    theta[:, 0, 0] = side * (1 - 2 * views[:, FLIP])
    theta[:, 1, 1] = side
    theta[:, :, 2] = views[:, X : Y + 1]
    grid = nn.functional.affine_grid(theta, list(images.shape), align_corners=False)
    return nn.functional.grid_sample(
        images, grid, mode="bilinear", padding_mode="border", align_corners=False
    )


def photometric(images: Tensor, views: Tensor) -> Tensor:
    """Change colors and sharpness: (B, 3, H, W) from 0 to 1, (B, 16)."""
    brightness, contrast = (1 + views[:, i, None, None, None] for i in (BRIGHTNESS, CONTRAST))
    x = (images * brightness).clamp(0, 1)
    luma = TO_YIQ[0].to(x)
    mean = torch.einsum("bchw,c->b", x, luma)[:, None, None, None] / x[0, 0].numel()
    x = ((x - mean) * contrast + mean).clamp(0, 1)
    x = torch.einsum("bdc,bchw->bdhw", _color_matrix(views), x).clamp(0, 1)
    x = blur(x, views[:, BLUR] * images.shape[2] / 100)
    solarized = torch.where(x >= 0.5, 1 - x, x)
    return torch.where(views[:, SOLARIZE, None, None, None] > 0.5, solarized, x)


def _color_matrix(views: Tensor) -> Tensor:
    """Saturation, hue and grayscale as one matrix on RGB: (B, 16) -> (B, 3, 3)."""
    angle = 2 * math.pi * views[:, HUE]
    scale = (1 + views[:, SATURATION]) * (1 - views[:, GRAY])
    turned = views.new_zeros(len(views), 3, 3)
    turned[:, 0, 0] = 1
    turned[:, 1, 1] = turned[:, 2, 2] = scale * angle.cos()
    turned[:, 1, 2] = -scale * angle.sin()
    turned[:, 2, 1] = scale * angle.sin()
    return _FROM_YIQ.to(views) @ turned @ TO_YIQ.to(views)


def blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Blur each image by a Gaussian of its own: (B, 3, H, W), (B,) pixels; 0 leaves it."""
    radius = max(1, math.ceil(2.5 * MAX_BLUR * images.shape[2] / 100))
    return filter_images(images, gaussian(sigma, radius))


def relative(source: Tensor, target: Tensor) -> Tensor:
    """What leads from one view to another: (B, 16) each -> (B, 16).

    Applied to the source it gives the target, but for what was clamped: factors are the target's by
    the source's, less 1, other photometric numbers differences; the crop is the target's within the
    source's.  A difference of factors would lead to another image from each source.  From a source
    of less than LEAST_FACTOR, such as a black one, no factor leads back.
    """
    action = target - source
    action[:, FACTORS] /= (1 + source[:, FACTORS]).clamp(min=LEAST_FACTOR)
    side, sign = source[:, LOG_SIDE].exp(), 1 - 2 * source[:, FLIP]
    action[:, X] = action[:, X] / side * sign
    action[:, Y] = action[:, Y] / side
    action[:, FLIP] = (target[:, FLIP] - source[:, FLIP]).abs()
    return action


def positions_in_source(positions: Tensor, action: Tensor) -> Tensor:
    """Where points of the target lie in the source: (P, 2) x and y from -1 to 1 -> (B, P, 2)."""
    side = action[:, LOG_SIDE].exp()
    scale = torch.stack([side * (1 - 2 * action[:, FLIP]), side], 1)
    return action[:, None, X : Y + 1] + scale[:, None] * positions
