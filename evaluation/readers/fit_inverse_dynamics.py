"""Train the inverse model on real frames of training episodes, once for a set of recordings."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import trange

from data.clips import Clips
from data.shards import Recordings
from evaluation.measures.sample_clips import spread_windows
from evaluation.readers.inverse_dynamics import Inverse
from evaluation.readers.network_cache import kept
from pipeline import checkpoint

RUNS = 2000  # short films to train on, at most: about 500 MB at 128 pixels
FRAMES = 5  # of each of them: what is near is cheap to read, what is far is something new


def label_weights(choices: Tensor, sizes: tuple[int, ...]) -> list[Tensor]:
    """Weigh each label of a factor by 1 / sqrt(how often it was chosen): (n, F) -> (labels,) each.

    By nothing, what is rare would never be read; by 1 / count, a key pressed twice would be worth
    as much as all the rest.
    """
    counts = [
        torch.bincount(chosen, minlength=size)
        for chosen, size in zip(choices.unbind(1), sizes, strict=True)
    ]
    return [count.clamp(min=1).float().rsqrt() for count in counts]


def soften(pairs: Tensor, random: torch.Generator) -> Tensor:
    """Blur a third of pairs (n, 2, 3, H, W): imagined pictures are softer than real ones."""
    chosen = (torch.rand(len(pairs), generator=random) < 0.3).to(pairs.device)
    soft = F.avg_pool2d(pairs.flatten(0, 1), 3, 1, 1, count_include_pad=False).view_as(pairs)
    return torch.where(chosen[:, None, None, None, None], soft, pairs)


def fit(
    inverse: Inverse,
    films: Tensor,
    choices: Tensor,
    steps: int = 3000,
    batch_size: int = 32,
    seed: int = 0,
    progress: bool = True,
) -> None:
    """Train on films (B, T, 3, H, W) uint8 and the choices between their frames (B, T - 1, F)."""
    random = torch.Generator().manual_seed(seed)
    sizes = inverse.actions.factor_sizes
    weights = [w.to(inverse.device) for w in label_weights(choices.flatten(0, 1), sizes)]
    network = inverse.network.train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps, pct_start=0.1)
    for _ in trange(steps, desc="inverse model", disable=not progress, leave=False):
        film = torch.randint(len(films), (batch_size,), generator=random)
        at = torch.randint(choices.shape[1], (batch_size,), generator=random)
        pairs = inverse.prepare(torch.stack([films[film, at], films[film, at + 1]], 1))
        logits = inverse.logits(soften(pairs, random))
        wanted = choices[film, at].to(inverse.device).unbind(1)
        losses = [
            F.cross_entropy(one, label, weight)
            for one, label, weight in zip(logits, wanted, weights, strict=True)
        ]
        optimizer.zero_grad(set_to_none=True)
        torch.stack(losses).sum().backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    network.eval()


def cached_inverse(
    path: Path,
    recordings: Recordings,
    steps: int,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Inverse:
    """Load the inverse model of these recordings from `path`, or train it and save it there."""
    made_from = {"shards": recordings.fingerprint, "steps": steps, "seed": seed}
    torch.manual_seed(seed)
    inverse = Inverse(recordings.actions, device)
    weights = kept(path, made_from, device)
    if weights is not None:
        inverse.network.load_state_dict(weights)
        inverse.network.eval()
        return inverse
    clips = Clips(recordings, "train", frames=FRAMES)
    clip = clips.batch(spread_windows(clips, RUNS, seed)[0])
    fit(inverse, clip.frames, recordings.actions.split(clip.actions[:, :-1]), steps, seed=seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.save(path, {"made_from": made_from, "network": inverse.network.state_dict()})
    return inverse
