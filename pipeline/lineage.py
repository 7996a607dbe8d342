"""What a checkpoint goes back to: the one underneath, and the episodes that its weights saw."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from data.shards.episode_dataset import EpisodeDataset
from data.shards.shard_header import Split
from pipeline.checkpoint import Checkpoint, train_command
from pipeline.trained_on import TrainedOn, episode_digests, read_recordings


def check_parent(
    child: Checkpoint, child_path: Path, parent: Checkpoint, parent_path: Path
) -> None:
    """Raise ValueError when `child` was trained on another parent than this one."""
    expected = child["parent"]["fingerprint"]
    if expected != parent["fingerprint"]:
        again = train_command(child["stage"], child_path)
        again += "" if follows(parent, expected) else " --restart"
        raise ValueError(
            f"{child_path} was trained on a {parent['stage']} with fingerprint {expected}, but "
            f"{parent_path} has {parent['fingerprint']}; run {again}, or put the old "
            f"{parent['stage']} back"
        )


def follows(checkpoint: Checkpoint, fingerprint: str) -> bool:
    """Whether a checkpoint goes on, on grown data, from the one with this fingerprint."""
    return fingerprint in checkpoint.get("lineage", [])


def inherit(recordings: TrainedOn | None, source: Checkpoint) -> TrainedOn | None:
    """Add what the weights of `source`, which a training begins with, were trained on."""
    if recordings is None:
        return None
    before = all_digests(source)
    return recordings | {"inherited": None if before is None else torch.tensor(before)}


def all_digests(checkpoint: Checkpoint) -> np.ndarray | None:
    """Digests of all episodes that a checkpoint was trained on, (E,) int64; None if unknown."""
    found = read_recordings(checkpoint)
    if found is None or found["inherited"] is None:
        return None
    return np.union1d(found["train"].numpy(), found["inherited"].numpy())


def count_trained_on(
    checkpoints: Iterable[Checkpoint], dataset: EpisodeDataset, split: Split
) -> int | None:
    """Count the episodes of a split that any of the checkpoints was trained on.

    None where none is known, and one of the checkpoints does not remember its recordings.
    """
    digests = episode_digests(dataset, dataset.episodes(split))
    trained, complete = np.zeros(len(digests), bool), True
    for checkpoint in checkpoints:
        found = read_recordings(checkpoint)
        complete &= found is not None and found["inherited"] is not None
        for part in ("train", "inherited"):
            if found is not None and found[part] is not None:
                trained |= np.isin(digests, found[part].numpy())
    return int(trained.sum()) if complete or trained.any() else None
