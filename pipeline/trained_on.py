"""The recorded episodes that a checkpoint was trained on.

A checkpoint's field `recordings`: `dataset`, the fingerprint of the shards; `train`, the digests of
their training episodes, (E,) int64, ascending; `inherited`, those of the episodes that the weights
it began with were trained on, None where these do not remember them.  The field is None, or absent,
in checkpoints that were written before there was one.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.columns import Split
from data.episode_digests import episode_digests
from data.shards import EpisodeDataset
from pipeline.checkpoint import Checkpoint, train_command

Recordings = dict[str, Any]


def recordings_of(dataset: EpisodeDataset, *known: Checkpoint | None) -> Recordings:
    """Describe the training episodes of a dataset.

    known: checkpoints that may be trained on the same shards, whose digests are then taken over.
    """
    fingerprint = dataset.fingerprint
    for checkpoint in known:
        found = read_recordings(checkpoint) if checkpoint else None
        if found and found["dataset"] == fingerprint:
            return found | {"inherited": _none()}
    digests = np.unique(episode_digests(dataset, dataset.episodes("train")))
    return {"dataset": fingerprint, "train": torch.tensor(digests), "inherited": _none()}


def read_recordings(checkpoint: Checkpoint) -> Recordings | None:
    """The field of a checkpoint; None where it has none that can be read."""
    found = checkpoint.get("recordings")
    if not found or not isinstance(found.get("dataset"), str) or not _is_list(found.get("train")):
        return None
    inherited = found.get("inherited")
    return found | {"inherited": inherited if _is_list(inherited) else None}


def inherit(recordings: Recordings | None, source: Checkpoint) -> Recordings | None:
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


def check_parent_recordings(
    parent: Checkpoint, path: Path, recordings: Recordings, dataset: EpisodeDataset
) -> None:
    """Raise ValueError where `parent`, the checkpoint at `path`, was trained on episodes that are
    not for training in `dataset`: held-out figures would be of episodes that were trained on.

    It may have been trained on fewer.
    """
    found = read_recordings(parent)
    if found is None or found["dataset"] == recordings["dataset"]:
        return
    other = np.setdiff1d(found["train"].numpy(), recordings["train"].numpy())
    if not len(other):
        return
    raise ValueError(
        f"{path} was trained on other recordings: {_describe(other, found, dataset)}; train it "
        f"again with {train_command(parent['stage'], path)} --restart, or put those shards back"
    )


def check_resumed_recordings(last: Checkpoint, path: Path, recordings: Recordings | None) -> None:
    """Raise ValueError where a training that resumes from `path` has other recordings by now."""
    found = read_recordings(last)
    if found is None or recordings is None or found["dataset"] == recordings["dataset"]:
        return
    before, now = found["train"].numpy(), recordings["train"].numpy()
    if not np.array_equal(before, now):
        common = len(np.intersect1d(before, now))
        raise ValueError(
            f"{path} was begun on other recordings: of its {len(before)} training episodes "
            f"{common} are among the {len(now)} of now; --restart starts over, another --run keeps "
            f"both"
        )


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


def _describe(other: np.ndarray, found: Recordings, dataset: EpisodeDataset) -> str:
    held_out = [e for split in ("validation", "test") for e in dataset.episodes(split)]
    leaked = int(np.isin(episode_digests(dataset, held_out), other).sum())
    if leaked:
        return f"{leaked} of the {len(held_out)} held-out episodes of {dataset.folder} among them"
    return (
        f"{len(other)} of its {len(found['train'])} training episodes are not in {dataset.folder}"
    )


def _none() -> torch.Tensor:
    return torch.zeros(0, dtype=torch.int64)


def _is_list(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype == torch.int64 and value.dim() == 1
