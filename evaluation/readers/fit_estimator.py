"""Train the state estimator on real frames of training episodes, once for a set of recordings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm, trange

from data.shards import Recordings
from data.splits import Split
from evaluation.readers.estimator import (
    LAYOUTS,
    Estimator,
    Layout,
    cells,
    centres,
    points_of,
)
from evaluation.readers.network_cache import kept
from pipeline import checkpoint

BLUR = 0.03  # standard deviation of a target heat map, as a share of the picture
FRAMES = 12_000  # real frames to train on, at most: about 150 MB at 64 pixels


def layout_of(recordings: Recordings) -> Layout | None:
    """Give what to look for in the frames of recordings, where that is known."""
    return LAYOUTS.get(recordings.state_names) if recordings.has("states") else None


def sample_frames(
    recordings: Recordings, split: Split, count: int, seed: int = 0
) -> tuple[Tensor, Tensor, np.ndarray]:
    """Draw frames with their states, evenly from all episodes of a split.

    Returns (n, 3, H, W) uint8, (n, S) float32 and the (n,) episodes; n is `count` or all there are.
    """
    episodes = recordings.episodes(split)
    rows = np.concatenate(
        [recordings.first_rows[e] + np.arange(recordings.length(e)) for e in episodes]
    )
    if len(rows) > count:
        kept = np.random.default_rng(seed).choice(len(rows), count, replace=False)
        rows = rows[np.sort(kept)]
    height, width = recordings.image_size
    frames = torch.empty(len(rows), 3, height, width, dtype=torch.uint8)
    states = recordings.read_rows("states", 0, recordings.total)[rows]
    owner = np.searchsorted(recordings.first_rows, rows, side="right") - 1
    for episode in tqdm(np.unique(owner), "reading frames", leave=False, disable=len(rows) < 5000):
        mine = np.flatnonzero(owner == episode)
        first, last = int(rows[mine[0]]), int(rows[mine[-1]])
        read = recordings.read_rows("frames", first, last + 1)[rows[mine] - first]
        frames[torch.from_numpy(mine)] = torch.from_numpy(read).permute(0, 3, 1, 2)
    return frames, torch.from_numpy(states).float(), owner


def augment(
    layout: Layout, x: Tensor, points: Tensor, random: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Mirror, turn by quarters and soften pictures: more poses from few episodes."""
    swapped, start = [], 0
    for body in layout.bodies:
        swapped += [start + index for index in body.mirrored]
        start += len(body.points)
    mirrors = (
        (lambda x: x.flip(3), lambda p: torch.stack([1 - p[..., 0], p[..., 1]], -1)),
        (lambda x: x.flip(2), lambda p: torch.stack([p[..., 0], 1 - p[..., 1]], -1)),
        (lambda x: x.transpose(2, 3), lambda p: p.flip(-1)),
    )
    for picture, place in mirrors:
        chosen = (torch.rand(len(x), generator=random) < 0.5).to(x.device)
        x = torch.where(chosen[:, None, None, None], picture(x), x)
        points = torch.where(chosen[:, None, None], place(points)[:, swapped], points)
    blurred = (torch.rand(len(x), generator=random) < 0.3).to(x.device)
    soft = F.avg_pool2d(x, 3, 1, 1)  # imagined pictures are softer than real ones
    return torch.where(blurred[:, None, None, None], soft, x), points


def fit(
    layout: Layout,
    frames: Tensor,
    states: Tensor,
    steps: int = 400,
    batch_size: int = 48,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> Estimator:
    """Train on real frames (n, 3, H, W) uint8 and their states (n, S)."""
    torch.manual_seed(seed)
    random = torch.Generator().manual_seed(seed)
    estimator = Estimator(layout, states.shape[1], device)
    network = estimator.network.train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps, pct_start=0.1)
    targets = points_of(layout, states.float()).to(estimator.device)
    line = cells(estimator.device)
    for _ in trange(steps, desc="state estimator", disable=not progress, leave=False):
        rows = torch.randint(len(frames), (batch_size,), generator=random)
        true_points = targets[rows.to(targets.device)]
        x, points = augment(layout, estimator.prepare(frames[rows]), true_points, random)
        logits = estimator.logits(x).float()
        near_x = -((line - points[..., 0:1]) ** 2) / (2 * BLUR**2)
        near_y = -((line - points[..., 1:2]) ** 2) / (2 * BLUR**2)
        wanted = (near_y[..., :, None] + near_x[..., None, :]).flatten(2).softmax(-1)
        shape = -(wanted * logits.flatten(2).log_softmax(-1)).sum(-1).mean()
        place = F.smooth_l1_loss(centres(logits), points, beta=0.01)
        optimizer.zero_grad(set_to_none=True)
        (shape + 100 * place).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    network.eval()
    return estimator


def measure(estimator: Estimator, recordings: Recordings, frames: int = 2000) -> dict[str, float]:
    """Give the estimator's own error on held-out real frames: the mean of every distance, and n."""
    pictures, states, _ = sample_frames(recordings, "test", frames)
    read = estimator.read(pictures).cpu()
    found = {"n": float(len(states))}
    for name, distance in estimator.errors(states, read).items():
        found[name] = float(distance.mean())
        found[f"{name}_p95"] = float(distance.quantile(0.95))
    return found


def cached_estimator(
    path: Path,
    recordings: Recordings,
    steps: int,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Estimator | None:
    """Load the estimator of these recordings from `path`, or train it and save it there.

    None where the states are not there, or of a world that no layout in LAYOUTS describes.
    """
    layout = layout_of(recordings)
    if layout is None:
        return None
    made_from = {"shards": recordings.fingerprint, "steps": steps, "seed": seed}
    width = len(recordings.state_names)
    weights = kept(path, made_from, device)
    if weights is not None:
        estimator = Estimator(layout, width, device)
        estimator.network.load_state_dict(weights)
        estimator.network.eval()
        return estimator
    pictures, states, _ = sample_frames(recordings, "train", FRAMES, seed)
    estimator = fit(layout, pictures, states, steps=steps, seed=seed, device=device)
    path.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.save(path, {"made_from": made_from, "network": estimator.network.state_dict()})
    return estimator
