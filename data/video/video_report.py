"""What became of videos: how many scenes they were cut into, and what was left out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data.shards.build_info import skip_reason, skipped_shards
from data.shards.episode_dataset import EpisodeDataset

MAX_NAMED = 10  # files that are named one by one, at most


def describe_videos(folder: Path, left_out: Sequence[str]) -> list[str]:
    """Say what the shards in `folder` were made of. left_out: what could not be opened."""
    dataset = EpisodeDataset(folder)
    notes = dataset.notes
    videos = {note["video"] for note in notes}
    damaged = [line for note in notes for line in note.get("left_out", ())]
    reasons = [skip_reason(path) for path in skipped_shards(folder).values()]
    threshold = dataset.description["settings"]["scene_threshold"]
    cuts, short = (sum(note.get(key, 0) for note in notes) for key in ("cuts", "short_scenes"))
    lines = [f"video: {len(videos)} files, {len(dataset)} scenes"]
    if threshold:
        lines[0] += f": {cuts} cuts, where the mean change of a pixel is above {threshold:g} of 255"
    if short:
        lines[0] += f"; {short} scenes of one frame left out"
    lines += [f"left out: {line}" for line in [*left_out, *damaged, *reasons][:MAX_NAMED]]
    more = len(left_out) + len(damaged) + len(reasons) - MAX_NAMED
    if more > 0:
        lines.append(f"left out: {more} more")
    return lines
