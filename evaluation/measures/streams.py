"""What the latents of an image world model keep: which image it is, and how it was transformed.

An invariant stream should keep the first and not the second, an equivariant one both; what a stream
keeps that it should not is a leak.  Both are read by linear maps from the mean over patches, as in
linear evaluation (arXiv:2403.00504).

Letters: E images, V views of each, D numbers of a stream, S numbers of a view.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from evaluation.measures.intervals import bootstrap
from models.layers import views

RIDGE = 1e-2  # of the mean variance of an input


class Streams(Protocol):
    """An image world model."""

    @property
    def streams(self) -> dict[str, slice]: ...
    def encode(self, frames: Tensor) -> Tensor: ...


@torch.no_grad()
def measure_streams(
    model: Streams, images: Sequence[Tensor], num_views: int = 32, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Read image and transformation from each stream: images of (3, H, W) uint8, at least 4.

    `accuracy`: of naming the image of a view; half of each image's views are learned from.
    `r2`: of the photometric numbers of views of images that were not learned from, from the view's
    latents and the image's own; the mean over the numbers.  Both with 95% intervals over images.
    """
    if len(images) < 4:
        raise ValueError(f"streams are measured on at least 4 images, and there are {len(images)}")
    generator = torch.Generator().manual_seed(seed)
    latents, numbers = _views(model, images, num_views, generator)
    return {
        name: _accuracy(latents[:, 1:, part]) | _r2(latents[..., part], numbers)
        for name, part in model.streams.items()
    }


def _views(
    model: Streams, images: Sequence[Tensor], num_views: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Latents of each image and of its views (E, 1 + V, D), the views' numbers (E, V, S)."""
    found, drawn = [], []
    for image in images:
        with torch.random.fork_rng():
            torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
            view = views.draw_photometric(torch.zeros(num_views, views.SLOTS, device=image.device))
        pixels = (image.float() / 255).expand(num_views, -1, -1, -1)
        seen = (views.apply(pixels, view) * 255).round().to(torch.uint8)
        found.append(model.encode(torch.cat([image[None], seen])).double().mean(1).cpu())
        drawn.append(view[:, views.PHOTOMETRIC].double().cpu())
    return torch.stack(found), torch.stack(drawn)


def _accuracy(latents: Tensor) -> dict[str, Any]:
    """(E, V, D): one linear score an image, by least squares on its first half of views."""
    count, num_views, _ = latents.shape
    train, test = latents[:, : num_views // 2], latents[:, num_views // 2 :]
    labels = torch.eye(count, dtype=latents.dtype).repeat_interleave(train.shape[1], 0)
    scores = _fit(train.flatten(0, 1), labels, test.flatten(0, 1))
    right = scores.argmax(1).unflatten(0, (count, -1)) == torch.arange(count)[:, None]
    share = right.double().mean(1).numpy()
    return {"accuracy": float(share.mean()), "accuracy_interval": bootstrap(share), "images": count}


def _r2(latents: Tensor, numbers: Tensor) -> dict[str, Any]:
    """(E, 1 + V, D), (E, V, S): learned on the first half of the images, tested on the second."""
    view, image = latents[:, 1:], latents[:, :1].expand_as(latents[:, 1:])
    inputs = torch.cat([view, view - image], -1)
    half = len(inputs) // 2
    train, test = inputs[:half].flatten(0, 1), inputs[half:].flatten(0, 1)
    truth = numbers[half:]
    guess = _fit(train, numbers[:half].flatten(0, 1), test).unflatten(0, truth.shape[:2])
    mean = numbers[:half].flatten(0, 1).mean(0)
    error, spread = (guess - truth).square().mean(1), (truth - mean).square().mean(1)  # (E / 2, S)
    resamples = np.random.default_rng(0).integers(len(error), size=(2000, len(error)))
    drawn = [_share(error[index], spread[index]) for index in resamples]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {"r2": _share(error, spread), "r2_interval": (float(low), float(high))}


def _share(error: Tensor, spread: Tensor) -> float:
    return float((1 - error.mean(0) / spread.mean(0).clamp(1e-12)).mean())


def _fit(inputs: Tensor, targets: Tensor, others: Tensor) -> Tensor:
    """Ridge regression with a constant: (n, D), (n, K), (m, D) -> (m, K)."""
    center, mean = inputs.mean(0), targets.mean(0)
    x, y = inputs - center, targets - mean
    gram = x.T @ x
    gram += RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    return (others - center) @ torch.linalg.solve(gram, x.T @ y) + mean
