"""What the lengths of episodes mean for the later stages."""

from __future__ import annotations

from data.shards.episode_dataset import EpisodeDataset
from data.shards.shard_header import SPLITS
from data.shards.splits import LONG_ENOUGH


def describe_lengths(dataset: EpisodeDataset) -> str:
    """Warn of episodes that later stages can make little or no use of; empty where there are none.

    A stage takes clips of so many consecutive frames as its recipe says, from single episodes.
    """
    empty = [split for split in SPLITS[:2] if not dataset.episodes(split)]
    if empty:
        return (
            f"warning: no episode is for {' or '.join(empty)}, which training needs: record at "
            f"least 3, or cut a long recording into several"
        )
    short = int((dataset.lengths < LONG_ENOUGH).sum())
    if not short or dataset.description.get("source") == "images":  # which have one frame each
        return ""
    longest = {
        split: max((dataset.length(e) for e in dataset.episodes(split)), default=0)
        for split in SPLITS
    }
    line = (
        f"{short} of {len(dataset)} episodes are shorter than the {LONG_ENOUGH} frames that hold "
        f"the clips of every recipe, and an open loop of 16 steps"
    )
    lacking = [split for split, length in longest.items() if 0 < length < LONG_ENOUGH]
    if not lacking:
        return f"{line}; a stage leaves out those that are shorter than its own clips"
    found = ", ".join(f"{longest[split]} in {split}" for split in lacking)
    return (
        f"warning: {line}; the longest have {found}: give the stages shorter clips "
        f"(--model.clip-length), or record longer episodes"
    )
