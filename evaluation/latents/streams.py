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

from evaluation.measures.intervals import bootstrap, bootstrap_means
from models.layers import views

MIN_SOURCES = 4
RIDGE = 1e-2  # of the mean variance of an input


class Streams(Protocol):
    """An image world model."""

    @property
    def streams(self) -> dict[str, slice]: ...
    def encode(self, frames: Tensor) -> Tensor: ...


@torch.no_grad()
def measure_streams(
    model: Streams,
    images: Tensor | Sequence[Tensor],
    sources: Sequence[int] | np.ndarray,
    num_views: int = 32,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Read image and transformation from each stream.

    images: of (3, H, W) uint8.  sources: what each is cut from; at least 4 in all.
    `accuracy`: of naming the image of a view; half of each image's views are learned from.
    `r2`: of the photometric numbers of views of sources that were not learned from, from the view's
    latents and the image's own; the mean over the numbers.  Both with 95% intervals over sources.
    """
    groups = np.unique(np.asarray(sources), return_inverse=True)[1]
    if groups.max() + 1 < MIN_SOURCES:
        raise ValueError(
            f"streams are measured on images of at least {MIN_SOURCES} sources, and there are "
            f"{groups.max() + 1}"
        )
    generator = torch.Generator().manual_seed(seed)
    latents, numbers = _views(model, images, num_views, generator)
    sizes = {"images": len(groups), "sources": int(groups.max() + 1)}
    return {
        name: _accuracy(latents[:, 1:, part], groups)
        | _r2(latents[..., part], numbers, groups)
        | sizes
        for name, part in model.streams.items()
    }


def _views(
    model: Streams, images: Tensor | Sequence[Tensor], num_views: int, generator: torch.Generator
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


def _accuracy(latents: Tensor, groups: np.ndarray) -> dict[str, Any]:
    """(E, V, D): one linear score an image, by least squares on its first half of views."""
    count, num_views, _ = latents.shape
    train, test = latents[:, : num_views // 2], latents[:, num_views // 2 :]
    labels = torch.eye(count, dtype=latents.dtype).repeat_interleave(train.shape[1], 0)
    scores = _fit(train.flatten(0, 1), labels, test.flatten(0, 1))
    right = scores.argmax(1).unflatten(0, (count, -1)) == torch.arange(count)[:, None]
    share = right.double().mean(1).numpy()
    return {"accuracy": float(share.mean()), "accuracy_interval": bootstrap(share, groups)}


def _r2(latents: Tensor, numbers: Tensor, groups: np.ndarray) -> dict[str, Any]:
    """(E, 1 + V, D), (E, V, S): learned on the first half of the sources, tested on the others."""
    view, image = latents[:, 1:], latents[:, :1].expand_as(latents[:, 1:])
    inputs = torch.cat([view, view - image], -1)
    learned = torch.from_numpy(groups < (groups.max() + 1) // 2)
    train, test = inputs[learned].flatten(0, 1), inputs[~learned].flatten(0, 1)
    truth, known = numbers[~learned], numbers[learned].flatten(0, 1)
    guess = _fit(train, known, test).unflatten(0, truth.shape[:2])
    error = (guess - truth).square().mean(1).numpy()  # (images, S)
    spread = (truth - known.mean(0)).square().mean(1).numpy()
    means = bootstrap_means(np.concatenate([error, spread], 1), groups[~learned.numpy()])
    low, high = np.quantile([_share(*np.split(mean, 2)) for mean in means], [0.025, 0.975])
    return {"r2": _share(error.mean(0), spread.mean(0)), "r2_interval": (float(low), float(high))}


def _share(error: np.ndarray, spread: np.ndarray) -> float:
    return float((1 - error / spread.clip(1e-12)).mean())


def _fit(inputs: Tensor, targets: Tensor, others: Tensor) -> Tensor:
    """Ridge regression with a constant: (n, D), (n, K), (m, D) -> (m, K)."""
    center, mean = inputs.mean(0), targets.mean(0)
    x, y = inputs - center, targets - mean
    gram = x.T @ x
    gram += RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    return (others - center) @ torch.linalg.solve(gram, x.T @ y) + mean
