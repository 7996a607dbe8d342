"""Train the inverse model on real frames of training episodes, once for a set of recordings."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import trange

from data.clips import Clips
from data.shards import EpisodeDataset
from evaluation.measures.sample_clips import sample_clips
from evaluation.readers.inverse_dynamics import InverseDynamics
from evaluation.readers.network_cache import load_cached
from pipeline import checkpoint

MAX_CLIPS = 2000  # short films to train on, at most: about 500 MB at 128 pixels
CLIP_LENGTH = 5  # of each of them: what is near is cheap to read, what is far is something new


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


def augment(pairs: Tensor, generator: torch.Generator) -> Tensor:
    """Blur a third of pairs (n, 2, 3, H, W): imagined pictures are softer than real ones."""
    mask = (torch.rand(len(pairs), generator=generator) < 0.3).to(pairs.device)
    blurred = F.avg_pool2d(pairs.flatten(0, 1), 3, 1, 1, count_include_pad=False).view_as(pairs)
    return torch.where(mask[:, None, None, None, None], blurred, pairs)


def fit(
    idm: InverseDynamics,
    frames: Tensor,
    choices: Tensor,
    steps: int = 3000,
    batch_size: int = 32,
    seed: int = 0,
    progress: bool = True,
) -> None:
    """Train on films (B, T, 3, H, W) uint8 and the choices between their frames (B, T - 1, F)."""
    generator = torch.Generator().manual_seed(seed)
    sizes = idm.actions.factor_sizes
    weights = [w.to(idm.device) for w in label_weights(choices.flatten(0, 1), sizes)]
    network = idm.network.train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps, pct_start=0.1)
    for _ in trange(steps, desc="inverse model", disable=not progress, leave=False):
        clip = torch.randint(len(frames), (batch_size,), generator=generator)
        step = torch.randint(choices.shape[1], (batch_size,), generator=generator)
        pairs = idm.preprocess(torch.stack([frames[clip, step], frames[clip, step + 1]], 1))
        logits = idm.logits(augment(pairs, generator))
        targets = choices[clip, step].to(idm.device).unbind(1)
        losses = [
            F.cross_entropy(one, label, weight)
            for one, label, weight in zip(logits, targets, weights, strict=True)
        ]
        optimizer.zero_grad(set_to_none=True)
        torch.stack(losses).sum().backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    network.eval()


def cached_idm(
    path: Path,
    dataset: EpisodeDataset,
    steps: int,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> InverseDynamics:
    """Load the inverse model of these recordings from `path`, or train it and save it there."""
    cache_key = {"shards": dataset.fingerprint, "steps": steps, "seed": seed}
    torch.manual_seed(seed)
    idm = InverseDynamics(dataset.actions, device)
    weights = load_cached(path, cache_key, device)
    if weights is not None:
        idm.network.load_state_dict(weights)
        idm.network.eval()
        return idm
    clips = Clips(dataset, "train", clip_length=CLIP_LENGTH)
    clip = clips.batch(sample_clips(clips, MAX_CLIPS, seed)[0])
    fit(idm, clip.frames, dataset.actions.unravel(clip.actions[:, :-1]), steps, seed=seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.save(path, {"made_from": cache_key, "network": idm.network.state_dict()})
    return idm
