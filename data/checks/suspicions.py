"""What is valid in a dataset, and yet spoils what is trained or measured on it."""

from __future__ import annotations

import numpy as np

from data.io.messages import counted, first_few
from data.shards.build_info import read_build_info, skip_reason, skipped_shards
from data.shards.episode_dataset import EpisodeDataset
from data.shards.shard_header import SPLITS

SAMPLED_FRAMES = 64
FAINT = 16  # of 255: frames whose values all lie within so many show nothing


def suspicions(dataset: EpisodeDataset) -> list[str]:
    """Return a line for each: skipped shards, sources in two splits, frames, actions and rewards
    that say nothing, episodes that go on after their end."""
    found = [
        _skipped(dataset),
        _other_build(dataset),
        _shared_sources(dataset),
        _faint_frames(dataset),
        _constant_actions(dataset),
        _zero_rewards(dataset),
        _ends_inside(dataset),
    ]
    return [f"  warning: {line}" for line in found if line]


def _skipped(dataset: EpisodeDataset) -> str:
    skipped = skipped_shards(dataset.folder)
    reasons = sorted({skip_reason(path) for path in skipped.values()})
    return f"{counted(len(skipped), 'skipped shard')}: {first_few(reasons, 3)}" if skipped else ""


def _other_build(dataset: EpisodeDataset) -> str:
    info = read_build_info(dataset.folder)
    if info is None:
        return ""
    ours = {k: v for k, v in dataset.description.items() if k != "format"}
    differing = [k for k in sorted(ours | info["description"]) if not _same(info, ours, k)]
    return f"build.json describes other shards, by {first_few(differing)}" if differing else ""


def _same(info: dict, ours: dict, key: str) -> bool:
    return info["description"].get(key) == ours.get(key)


def _shared_sources(dataset: EpisodeDataset) -> str:
    splits: dict[int, set[int]] = {}
    for source, split in zip(dataset.sources.tolist(), dataset.splits.tolist(), strict=True):
        splits.setdefault(source, set()).add(split)
    shared = [source for source, own in splits.items() if len(own) > 1]
    if not shared:
        return ""
    names = ", ".join(SPLITS[split] for split in sorted(splits[shared[0]]))
    return (
        f"{len(shared)} of {len(splits)} sources have episodes in several splits (source "
        f"{shared[0]} in {names}), so what is held out may have been trained on"
    )


def _faint_frames(dataset: EpisodeDataset) -> str:
    rows = np.unique(np.linspace(0, dataset.num_frames - 1, SAMPLED_FRAMES).astype(int)).tolist()
    frames = [dataset.read_rows("frames", row, row + 1) for row in rows]
    low, high = min(int(f.min()) for f in frames), max(int(f.max()) for f in frames)
    if high - low >= FAINT:
        return ""
    return (
        f"frames have values from {low} to {high} only, of 0 to 255: nothing can be seen in them; "
        f"were they cut to whole numbers? store them from 0 to 255, or import them with a --scale"
    )


def _constant_actions(dataset: EpisodeDataset) -> str:
    if not dataset.has("actions"):
        return ""
    actions = dataset.read_rows("actions", 0, dataset.num_frames)
    if len(actions) < 2:
        return ""
    if dataset.actions.kind == "discrete":
        same = [dataset.actions.describe(int(actions[0]))] if np.ptp(actions) == 0 else []
    else:
        fixed = np.ptp(actions, axis=0) == 0
        same = [
            name for name, is_fixed in zip(dataset.actions.names, fixed, strict=True) if is_fixed
        ]
    return f"the actions never change: {first_few(same)}" if same else ""


def _zero_rewards(dataset: EpisodeDataset) -> str:
    zero = dataset.all_zero("rewards")
    return "all rewards are 0, so no controller can learn a task from them" if zero else ""


def _ends_inside(dataset: EpisodeDataset) -> str:
    if not dataset.has("terminals"):
        return ""
    terminals = dataset.read_rows("terminals", 0, dataset.num_frames)
    terminals[dataset.first_rows + dataset.lengths - 1] = False
    inside = np.add.reduceat(terminals.astype(np.int64), dataset.first_rows) > 0
    if not inside.any():
        return ""
    return (
        f"{int(inside.sum())} of {len(dataset)} episodes go on after a frame that is marked as "
        f"their end"
    )
