"""Train the inverse dynamics model on real frames of training episodes, once for a dataset."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from data.clips import Clips
from data.shards.episode_dataset import EpisodeDataset
from evaluation.measures.sample_clips import sample_clips
from evaluation.readers.fit import fit
from evaluation.readers.inverse_dynamics import InverseDynamics
from evaluation.readers.network_cache import load_cached, save_cached

MAX_CLIPS = 2000  # most clips to train on: about 500 MB at 128 pixels
CLIP_LENGTH = 5  # frames: neighbors are cheap to read, distant frames are more varied


def label_weights(choices: Tensor, sizes: tuple[int, ...]) -> list[Tensor]:
    """Weigh each label of a factor by 1 / sqrt(its count): (n, F) -> (labels,) each.

    Unweighted, rare labels are never predicted; by 1 / count, a key that is pressed twice weighs as
    much as all others.
    """
    counts = [
        torch.bincount(chosen, minlength=size)
        for chosen, size in zip(choices.unbind(1), sizes, strict=True)
    ]
    return [count.clamp(min=1).float().rsqrt() for count in counts]


def augment(pairs: Tensor, generator: torch.Generator) -> Tensor:
    """Blur a third of pairs (n, 2, 3, H, W): model rollouts are less sharp than real frames."""
    mask = (torch.rand(len(pairs), generator=generator) < 0.3).to(pairs.device)
    blurred = F.avg_pool2d(pairs.flatten(0, 1), 3, 1, 1, count_include_pad=False).view_as(pairs)
    return torch.where(mask[:, None, None, None, None], blurred, pairs)


def fit_idm(
    idm: InverseDynamics,
    frames: Tensor,
    choices: Tensor,
    steps: int = 3000,
    batch_size: int = 32,
    seed: int = 0,
    progress: bool = True,
) -> None:
    """Train on videos (B, T, 3, H, W) uint8 and the choices between their frames (B, T - 1, F)."""
    generator = torch.Generator().manual_seed(seed)
    sizes = idm.actions.factor_sizes
    weights = [w.to(idm.device) for w in label_weights(choices.flatten(0, 1), sizes)]

    def loss() -> Tensor:
        clip = torch.randint(len(frames), (batch_size,), generator=generator)
        step = torch.randint(choices.shape[1], (batch_size,), generator=generator)
        pairs = idm.preprocess(torch.stack([frames[clip, step], frames[clip, step + 1]], 1))
        logits = idm.logits(augment(pairs, generator))
        targets = choices[clip, step].to(idm.device).unbind(1)
        losses = [
            F.cross_entropy(one, label, weight)
            for one, label, weight in zip(logits, targets, weights, strict=True)
        ]
        return torch.stack(losses).sum()

    fit(
        idm.network,
        loss,
        steps,
        learning_rate=2e-3,
        weight_decay=0.05,
        max_grad_norm=1.0,
        progress="inverse dynamics" if progress else None,
    )


def cached_idm(
    path: Path,
    dataset: EpisodeDataset,
    steps: int,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> InverseDynamics:
    """Load the inverse dynamics model of a dataset from `path`, or train it and save it there."""
    cache_key = {"shards": dataset.fingerprint, "steps": steps, "seed": seed}
    torch.manual_seed(seed)
    idm = InverseDynamics(dataset.actions, device)
    if load_cached(path, cache_key, idm.network):
        return idm
    longest = max(dataset.length(episode) for episode in dataset.episodes("train"))
    clips = Clips(dataset, "train", clip_length=max(2, min(CLIP_LENGTH, longest)))
    clip = clips.batch(sample_clips(clips, MAX_CLIPS, seed)[0])
    fit_idm(idm, clip.frames, dataset.actions.unravel(clip.actions[:, :-1]), steps, seed=seed)
    save_cached(path, cache_key, idm.network)
    return idm
