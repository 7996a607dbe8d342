"""States of a world at all frames of a dataset: what controllers read where a state is not the
tokenizer's latents.

Letters: B episodes, T frames, P patches, D width of a state.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data.actions import as_tensor
from data.shards.episode_dataset import EpisodeDataset
from models.world import World
from pipeline.batches.latent_cache import Span, fill_cache

MOST_FRAMES = 4096  # of episodes that are followed together, each as long as the longest
MOST_EPISODES = 64


def cache_states(
    folder: Path, world: World, fingerprint: str, dataset: EpisodeDataset
) -> np.ndarray:
    """Give the latents of the world's states along each episode, as it observes them.

    Returns and resumes as `cache_latents`; `fingerprint` is the dynamics model's.
    """

    def encode(span: Span) -> Tensor:
        episodes = np.flatnonzero(
            (dataset.first_rows >= span.start) & (dataset.first_rows < span.stop)
        )
        lengths = dataset.lengths[episodes]
        longest = int(lengths.max())
        frames = torch.zeros(len(episodes), longest, 3, *dataset.image_size, dtype=torch.uint8)
        actions = world.actions.empty(len(episodes), longest - 1)
        if dataset.has("actions"):
            actions = dataset.actions.empty(len(episodes), longest - 1)
        for row, episode in enumerate(episodes.tolist()):
            length = dataset.length(episode)
            read = torch.from_numpy(dataset.read(episode, "frames"))
            frames[row, :length] = read.permute(0, 3, 1, 2)
            if dataset.has("actions"):
                taken = as_tensor(dataset.read(episode, "actions", 0, length - 1))
                actions[row, : length - 1] = taken
        with torch.no_grad():
            states = world.states(frames, world.actions_of(frames, actions))
        return torch.cat([own[:length] for own, length in zip(states, lengths, strict=True)])

    return fill_cache(
        folder, world.state_spec, fingerprint, dataset, list(_groups(dataset)), encode
    )


def _groups(dataset: EpisodeDataset) -> Iterator[Span]:
    """Consecutive episodes that are followed together."""
    start = count = longest = 0
    ends = (dataset.first_rows + dataset.lengths).tolist()
    for first, end in zip(dataset.first_rows.tolist(), ends, strict=True):
        longest = max(longest, end - first)
        if count and (count == MOST_EPISODES or (count + 1) * longest > MOST_FRAMES):
            yield Span(start, first, 0)
            start, count, longest = first, 0, end - first
        count += 1
    yield Span(start, ends[-1], 0)
