"""Train the state estimator on real frames of training episodes, once for a dataset."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from data.shards.episode_dataset import EpisodeDataset
from data.shards.shard_header import Split
from evaluation.readers.estimator import (
    LAYOUTS,
    Layout,
    StateEstimator,
    cell_centers,
    soft_argmax,
    state_to_keypoints,
)
from evaluation.readers.fit import fit
from evaluation.readers.network_cache import load_cached, save_cached

HEATMAP_STD = 0.03  # standard deviation of a target heat map, as a share of the image
MAX_FRAMES = 12_000  # most real frames to train on: about 150 MB at 64 pixels


def layout_of(dataset: EpisodeDataset) -> Layout | None:
    """Give the layout of a dataset's states; None where LAYOUTS has none."""
    return LAYOUTS.get(dataset.state_names) if dataset.has("states") else None


def sample_frames(
    dataset: EpisodeDataset, split: Split, num_frames: int, seed: int = 0
) -> tuple[Tensor, Tensor, np.ndarray]:
    """Draw frames with their states, evenly from all episodes of a split.

    Returns (n, 3, H, W) uint8, (n, S) float32 and the (n,) episodes; n is at most `num_frames`.
    """
    episodes = dataset.episodes(split)
    rows = np.concatenate([dataset.first_rows[e] + np.arange(dataset.length(e)) for e in episodes])
    if len(rows) > num_frames:
        picked = np.random.default_rng(seed).choice(len(rows), num_frames, replace=False)
        rows = rows[np.sort(picked)]
    height, width = dataset.image_size
    frames = torch.empty(len(rows), 3, height, width, dtype=torch.uint8)
    states = dataset.read_rows("states", 0, dataset.num_frames)[rows]
    row_episodes = np.searchsorted(dataset.first_rows, rows, side="right") - 1
    for episode in tqdm(
        np.unique(row_episodes), "reading frames", leave=False, disable=len(rows) < 5000
    ):
        indices = np.flatnonzero(row_episodes == episode)
        first, last = int(rows[indices[0]]), int(rows[indices[-1]])
        pixels = dataset.read_rows("frames", first, last + 1)[rows[indices] - first]
        frames[torch.from_numpy(indices)] = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    return frames, torch.from_numpy(states).float(), row_episodes


def augment(
    layout: Layout, x: Tensor, keypoints: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Mirror, rotate by quarters and blur images (B, 3, H, W), with their keypoints (B, P, 2)."""
    flip_index, start = [], 0
    for body in layout.bodies:
        flip_index += [start + index for index in body.flip_index]
        start += len(body.keypoints)
    flips = (
        (lambda x: x.flip(3), lambda p: torch.stack([1 - p[..., 0], p[..., 1]], -1)),
        (lambda x: x.flip(2), lambda p: torch.stack([p[..., 0], 1 - p[..., 1]], -1)),
        (lambda x: x.transpose(2, 3), lambda p: p.flip(-1)),
    )
    for flip_image, flip_keypoints in flips:
        mask = (torch.rand(len(x), generator=generator) < 0.5).to(x.device)
        x = torch.where(mask[:, None, None, None], flip_image(x), x)
        keypoints = torch.where(
            mask[:, None, None], flip_keypoints(keypoints)[:, flip_index], keypoints
        )
    blur_mask = (torch.rand(len(x), generator=generator) < 0.3).to(x.device)
    blurred = F.avg_pool2d(x, 3, 1, 1)  # model rollouts are less sharp than real frames
    return torch.where(blur_mask[:, None, None, None], blurred, x), keypoints


def fit_estimator(
    layout: Layout,
    frames: Tensor,
    states: Tensor,
    steps: int = 400,
    batch_size: int = 48,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> StateEstimator:
    """Train on real frames (n, 3, H, W) uint8 and their states (n, S)."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    estimator = StateEstimator(layout, states.shape[1], device)
    targets = state_to_keypoints(layout, states.float()).to(estimator.device)
    positions = cell_centers(estimator.device)

    def loss() -> Tensor:
        indices = torch.randint(len(frames), (batch_size,), generator=generator)
        true_keypoints = targets[indices.to(targets.device)]
        x, keypoints = augment(
            layout, estimator.preprocess(frames[indices]), true_keypoints, generator
        )
        logits = estimator.logits(x).float()
        log_x = -((positions - keypoints[..., 0:1]) ** 2) / (2 * HEATMAP_STD**2)
        log_y = -((positions - keypoints[..., 1:2]) ** 2) / (2 * HEATMAP_STD**2)
        target_heatmaps = (log_y[..., :, None] + log_x[..., None, :]).flatten(2).softmax(-1)
        heatmap_loss = -(target_heatmaps * logits.flatten(2).log_softmax(-1)).sum(-1).mean()
        keypoint_loss = F.smooth_l1_loss(soft_argmax(logits), keypoints, beta=0.01)
        return heatmap_loss + 100 * keypoint_loss

    fit(
        estimator.network,
        loss,
        steps,
        learning_rate=3e-3,
        weight_decay=0.01,
        max_grad_norm=1.0,
        progress="state estimator" if progress else None,
    )
    return estimator


def measure_estimator(
    estimator: StateEstimator, dataset: EpisodeDataset, num_frames: int = 2000
) -> dict[str, float]:
    """Measure the estimator on held-out real frames: n, and each distance's mean and p95."""
    images, states, _ = sample_frames(dataset, "test", num_frames)
    predicted = estimator.predict(images).cpu()
    errors = {"n": float(len(states))}
    for name, distance in estimator.errors(states, predicted).items():
        errors[name] = float(distance.mean())
        errors[f"{name}_p95"] = float(distance.quantile(0.95))
    return errors


def cached_estimator(
    path: Path,
    dataset: EpisodeDataset,
    steps: int,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> StateEstimator | None:
    """Load the estimator of a dataset from `path`, or train it and save it there.

    None where the dataset has no states, or none that a layout in LAYOUTS describes.
    """
    layout = layout_of(dataset)
    if layout is None:
        return None
    cache_key = {"shards": dataset.fingerprint, "steps": steps, "seed": seed}
    state_dim = len(dataset.state_names)
    estimator = StateEstimator(layout, state_dim, device)
    if load_cached(path, cache_key, estimator.network):
        return estimator
    frames, states, _ = sample_frames(dataset, "train", MAX_FRAMES, seed)
    estimator = fit_estimator(layout, frames, states, steps=steps, seed=seed, device=device)
    save_cached(path, cache_key, estimator.network)
    return estimator
