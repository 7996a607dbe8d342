"""What is said of shards once they are written."""

from __future__ import annotations

from collections.abc import Iterator

from data.checks.alignment_check import alignment_scores, alignment_warning
from data.checks.lengths import describe_lengths
from data.checks.pointer_alignment import pointer_correlations, pointer_warning
from data.io.messages import counted
from data.shards.episode_dataset import EpisodeDataset


def describe(dataset: EpisodeDataset) -> str:
    """Say in one line how much there is, and of what."""
    counts = {split: len(dataset.episodes(split)) for split in ("train", "validation", "test")}
    line = (
        f"{dataset.num_frames} frames, {counted(len(dataset), 'episode')} "
        f"({', '.join(f'{n} {split}' for split, n in counts.items())})"
    )
    if not dataset.has("actions"):
        line += ", without actions"
    if dataset.has("contacts"):
        contacts = dataset.read_rows("contacts", 0, dataset.num_frames)
        line += f", in contact in {(contacts > 0).mean():.0%} of the frames"
    if dataset.has("rewards"):
        max_rewards = [dataset.read(e, "rewards").max() for e in range(len(dataset))]
        line += f", mean best reward of an episode {sum(max_rewards) / len(max_rewards):z.2f}"
    return line


def warnings(dataset: EpisodeDataset) -> Iterator[str]:
    """Yield a line for each thing that a user should look at before training."""
    lines = (
        describe_lengths(dataset),
        alignment_warning(alignment_scores(dataset)),
        pointer_warning(pointer_correlations(dataset)),
    )
    yield from (line for line in lines if line)
