"""Held-out transitions: a start, steps, and where they really lead to.

Of a world they are clips with their actions; of a model of images, one view after the other of an
image.

Letters: B transitions, k steps, P patches, D width, A action numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data.shards.episode_dataset import EpisodeDataset
from data.shards.shard_header import Split
from evaluation.measures.sample_clips import choose_clips
from evaluation.measures.world_clips import world_clips
from models.layers import views
from pipeline.serve.latent_model import ImageModel, LatentModel, WorldModel

AT_ONCE = 32


@dataclass
class Transitions:
    start: Tensor  # (B, P, D)
    actions: Tensor  # (B, k, A)
    truth: Tensor  # (B, k, P, D)
    sources: np.ndarray  # (B,) what each is cut from: those of one are not independent
    states: Tensor | None = None  # (B, 1 + k, S) of the simulator, where they are known


def transitions_of(
    model: LatentModel, dataset: EpisodeDataset, split: Split, count: int, steps: int, seed: int
) -> Transitions:
    """ValueError where no episode is long enough."""
    if isinstance(model, WorldModel):
        return _of_world(model, dataset, split, count, steps, seed)
    assert isinstance(model, ImageModel)
    return _of_images(model, dataset, split, count, steps, seed)


def choose_frames(
    dataset: EpisodeDataset, split: Split, count: int, seed: int
) -> tuple[Tensor, np.ndarray]:
    """First frames of episodes, as many of each source as can be: (B, 3, H, W) uint8, sources."""
    episodes = np.array(dataset.episodes(split))
    sources = dataset.sources[episodes]
    chosen = choose_clips(sources, min(count, len(episodes)), seed)
    read = [dataset.read(int(episodes[i]), "frames", 0, 1)[0] for i in chosen]
    frames = np.stack(read)
    return torch.from_numpy(frames).permute(0, 3, 1, 2), sources[chosen]


def _of_images(
    model: ImageModel, dataset: EpisodeDataset, split: Split, count: int, steps: int, seed: int
) -> Transitions:
    frames, sources = choose_frames(dataset, split, count, seed)
    device = torch.device(model.spec.device)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        drawn = torch.zeros(len(frames), steps, views.SLOTS)
        for step in range(steps):
            views.draw_photometric(drawn[:, step])
    starts, truths = [], []
    for part, actions in zip(frames.split(AT_ONCE), drawn.split(AT_ONCE), strict=True):
        part = part.to(device)
        starts.append(model.encode(part))
        pixels, found = part.float() / 255, []
        for action in actions.to(device).unbind(1):
            pixels = views.apply(pixels, action)
            found.append(model.encode((255 * pixels).round().to(torch.uint8)))
        truths.append(torch.stack(found, 1))
    return Transitions(torch.cat(starts), drawn.to(device), torch.cat(truths), sources)


def _of_world(
    model: WorldModel, dataset: EpisodeDataset, split: Split, count: int, steps: int, seed: int
) -> Transitions:
    clips = world_clips(model.world, dataset, split, steps + 1)
    if not len(clips):
        raise ValueError(
            f"no {split} episode of {dataset.folder} has {steps + 1} frames; lower --horizons"
        )
    episodes = np.array([clips.episode_of(i) for i in range(len(clips))])
    sources = np.asarray(dataset.sources)[episodes]  # perturbed copies are one
    chosen = choose_clips(sources, min(count, len(clips)), seed)
    starts, actions, truths, states = [], [], [], []
    for start in range(0, len(chosen), AT_ONCE):
        clip = clips.batch(chosen[start : start + AT_ONCE])
        frames = clip.frames.to(model.spec.device)
        encoded = model.encode(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])
        starts.append(encoded[:, 0])
        truths.append(encoded[:, 1:])
        actions.append(clip.actions[:, :steps].float().to(model.spec.device))
        states += [] if clip.states is None else [clip.states]
    taken = torch.cat(actions)
    taken = taken[..., None] if taken.ndim == 2 else taken  # codes
    return Transitions(
        torch.cat(starts),
        taken,
        torch.cat(truths),
        sources[chosen],
        torch.cat(states) if states else None,
    )
