"""A sample of training examples, for a method to take its scales from."""

from __future__ import annotations

import numpy as np

from data.batch import Batch
from pipeline.batches.clip_batches import ClipBatches
from pipeline.batches.demonstrations import DemoSteps
from pipeline.batches.rewarded_clips import RewardedClips

SAMPLE_BYTES = 2**28


def sample_of(data: ClipBatches | RewardedClips | DemoSteps, seed: int) -> Batch:
    """Draw training examples for a method to take its scales from; of rewarded clips also those of
    the highest rewards, which are rare."""
    clips = data.clips if isinstance(data, RewardedClips) else data
    one = clips.batch(np.arange(1))
    tensors = [x for x in (one.latents, one.actions, one.rewards) if x is not None]
    most = max(1000, SAMPLE_BYTES // sum(x.nbytes for x in tensors))
    sample = np.random.default_rng(seed).permutation(len(data))[:most]
    if isinstance(data, RewardedClips):
        sample = np.concatenate([sample, data.highest(len(sample) // 100 + 1)])
    return clips.batch(sample)
