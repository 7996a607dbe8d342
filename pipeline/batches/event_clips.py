"""Clips of which a share comes to an event: a rare reward, or a true end.

Where a reward is earned in one step of a thousand, batches drawn evenly hardly show it, and a
reward head never learns it (skewed sampling for reward prediction: Jaderberg et al.,
arXiv:1611.05397).

Letters: B clips, T frames.
"""

from __future__ import annotations

import numpy as np

from data.batch import Batch
from data.shards.episode_dataset import EpisodeDataset
from pipeline.batches.clip_batches import ClipBatches

MOST = 0.5  # share of frames above which a reward other than the commonest is not rare
AT_ONCE = 2**16  # clips


class EventClips:
    """Each clip of a batch is, with the chance `share`, another one: of those that come to an event
    after their first frame.

    Rewards and ends are drawn as often, where there are both, and evenly among themselves.  Where
    there are none, the clips stay as they are.
    """

    def __init__(self, clips: ClipBatches, share: float) -> None:
        self.clips, self.share = clips, share
        found = [_coming_to(is_event, clips) for is_event in events_of(clips.clips.dataset)]
        self._kinds = [indices for indices in found if len(indices)]

    def __len__(self) -> int:
        return len(self.clips)

    def batch(self, indices: np.ndarray) -> Batch:
        if not self._kinds:
            return self.clips.batch(indices)
        # drawn from the indices themselves, so that the batch is a function of them
        rng = np.random.default_rng(indices)
        replaced, kind, place = rng.random((3, len(indices)))
        mixed = indices.copy()
        for number, clips in enumerate(self._kinds):
            drawn = clips[(place * len(clips)).astype(np.int64)]
            own = (replaced < self.share) & ((kind * len(self._kinds)).astype(np.int64) == number)
            mixed[own] = drawn[own]
        return self.clips.batch(mixed)


def events_of(dataset: EpisodeDataset) -> tuple[np.ndarray, np.ndarray]:
    """Frames on which a rare reward was earned, and those of true ends: (frames,) bool each.

    A reset earns nothing, so that the first frame of an episode is no event.
    """
    rare, ends = np.zeros((2, dataset.num_frames), bool)
    if dataset.has("terminals"):
        ends = dataset.read_rows("terminals", 0, dataset.num_frames).astype(bool)
    if dataset.has("rewards"):
        rewards = dataset.read_rows("rewards", 0, dataset.num_frames)
        reached = np.ones(len(rewards), bool)
        reached[dataset.first_rows] = False
        values, counts = np.unique(rewards[reached], return_counts=True)
        if len(values) and counts.max() >= (1 - MOST) * counts.sum():
            rare = reached & (rewards != values[counts.argmax()])
    return rare, ends


def _coming_to(is_event: np.ndarray, clips: ClipBatches) -> np.ndarray:
    """Indices of the clips that come to an event, of which there is a flag for each frame."""
    found = [np.zeros(0, np.int64)]
    for start in range(0, len(clips), AT_ONCE):
        indices = np.arange(start, min(start + AT_ONCE, len(clips)))
        found.append(indices[is_event[clips.clips.rows(indices)[:, 1:]].any(1)])
    return np.concatenate(found)
